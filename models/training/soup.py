"""A model soup: a network whose weights are the means of several networks' weights.

It is as fast as one of them. If they were trained from the same checkpoint, it is often more accurate than each of them
(Wortsman et al. 2022, "Model soups").
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from models.checkpoint import Checkpoint, code_version, read_checkpoint, write_checkpoint
from models.errors import UserError
from models.persistence.training_record import TrainedStage

SOUP = "soup"


@torch.no_grad()
def make_soup(folders: Sequence[Path], target: Path) -> None:
    """Write a checkpoint whose weights and batch norm statistics are the means of those in ``folders``.

    Its execute threshold is 0.5. Raises UserError for fewer than two checkpoints, for checkpoints of different
    networks, labels or data, and for a checkpoint that cannot be read.
    """
    if len(folders) < 2:
        raise UserError("a model soup needs two checkpoints or more: name another")
    checkpoints = [read_checkpoint(folder) for folder in folders]
    first, *others = checkpoints
    for folder, other in zip(folders[1:], others, strict=True):
        require_alike(first, other, f"{folders[0]} and {folder}")
    states = [checkpoint.network.state_dict() for checkpoint in checkpoints]
    for name, value in first.network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.stack([state[name] for state in states]).mean(0))
    training = first.config.training.model_copy(update={"stages": stages_of(checkpoints)})
    changes = {"execute_threshold": 0.5, "training": training, "evaluation": None, "calibration": []}
    write_checkpoint(target, first.network, first.config.model_copy(update=changes | {"code": code_version()}))


def require_alike(first: Checkpoint, other: Checkpoint, both: str) -> None:
    """Raise UserError if two checkpoints are of different networks or were trained on different images."""
    for name in ("architecture", "labels", "input"):
        if getattr(first.config, name) != getattr(other.config, name):
            raise UserError(f"{both} cannot be averaged: their {name} is not the same")
    for name in ("dataset", "validation_images"):
        one, another = getattr(first.config.training, name), getattr(other.config.training, name)
        if one != another:
            raise UserError(
                f"{both} cannot be averaged: {name.replace('_', ' ')} is {one} of one, {another} of the other"
            )


def stages_of(checkpoints: Sequence[Checkpoint]) -> tuple[TrainedStage, ...]:
    """Return the first checkpoint's stages and the soup's stage, which records the stages of the others."""
    first, *others = (checkpoint.config.training.stages for checkpoint in checkpoints)
    return (*first, TrainedStage(stage=SOUP, members=tuple(others)))
