"""The mean of several networks' weights, which runs as fast as each of them.

Networks that were trained on from one lie close enough together for their mean to be one too, often a better one
(Wortsman et al. 2022, "model soups").
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import Checkpoint, code_version, read_checkpoint, write_checkpoint

SOUP = "soup"


class CannotAverage(ValueError):
    """The checkpoints have no mean; the message says why."""


@torch.no_grad()
def make_soup(folders: Sequence[Path], target: Path) -> None:
    """Write the checkpoint whose weights, batch norm's statistics too, are the means of those in ``folders``.

    Its execute threshold is 0.5. Raises CannotAverage where they are of different networks, labels or data, or fewer
    than two, and CheckpointError where one can't be read.
    """
    if len(folders) < 2:
        raise CannotAverage("a mean is of two checkpoints or more: name another")
    checkpoints = [read_checkpoint(folder) for folder in folders]
    first, *others = checkpoints
    for folder, other in zip(folders[1:], others, strict=True):
        require_alike(first, other, f"{folders[0]} and {folder}")
    states = [checkpoint.network.state_dict() for checkpoint in checkpoints]
    for name, value in first.network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.stack([state[name] for state in states]).mean(0))
    training = first.config.training | {"stages": stages_of(checkpoints)}
    changes = {"execute_threshold": 0.5, "training": training, "evaluation": None, "calibration": []}
    write_checkpoint(target, first.network, first.config.model_copy(update=changes | {"code": code_version()}))


def require_alike(first: Checkpoint, other: Checkpoint, both: str) -> None:
    """Raise CannotAverage where two checkpoints are of different networks, or saw other images in training."""
    for name in ("architecture", "labels", "input"):
        if getattr(first.config, name) != getattr(other.config, name):
            raise CannotAverage(f"{both} have no mean: their {name} is not the same")
    for name in ("dataset", "validation_images"):
        one, another = first.config.training.get(name), other.config.training.get(name)
        if one != another:
            raise CannotAverage(
                f"{both} have no mean: {name.replace('_', ' ')} is {one} of one, {another} of the other"
            )


def stages_of(checkpoints: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    """Return the first checkpoint's stages, and the mean as one more, which tells of the others' stages."""
    chains = [checkpoint.config.training.get("stages", []) for checkpoint in checkpoints]
    return [*chains[0], {"stage": SOUP, "of": chains[1:]}]
