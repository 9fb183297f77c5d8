"""The types of a training run: the job, and the observer that follows it."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.architectures import Architecture
from models.data.batches import Batches
from models.evaluation.metrics import Metrics
from models.network import SkipNet
from models.persistence.training_record import TrainedStage, TrainingRecord
from models.preprocessing import InputSpec
from models.training.recipes import Recipe
from models.training.state import Progress

Evaluate = Callable[[SkipNet], Metrics]
Show = Callable[[Iterator[int]], Iterator[int]]
"""Wraps the steps of an epoch, for a progress bar."""


@dataclass(frozen=True)
class Job:
    """Everything that determines a run.

    ``batches`` returns a recipe's batches, and ``validate`` measures a network on the validation images. ``mixed`` runs
    convolutions in bfloat16. ``teacher`` is a network, or its logits [N, classes] for all images. ``teacher_name`` is
    its name in the stages' records. ``origins`` are the files of the network to start from and of the teacher.
    ``about`` is the training record without its stages, and ``earlier`` are the stages before the run. ``data`` is a
    line that describes the data for the user.
    """

    architecture: Architecture
    network: SkipNet
    labels: list[str]
    spec: InputSpec
    recipes: list[Recipe]
    batches: Callable[[Recipe], Batches]
    validate: Evaluate
    device: torch.device
    seed: int
    folder: Path
    compile: bool
    mixed: bool
    teacher: nn.Module | Tensor | None
    teacher_name: str
    origins: dict[str, str]
    about: TrainingRecord
    earlier: list[TrainedStage]
    data: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """The values that must be the same when the run is resumed."""
        values = {
            f"{recipe.stage} {key}": value for recipe in self.recipes for key, value in stage_summary(recipe).items()
        }
        return {
            "architecture": self.architecture.name,
            "stages": [recipe.stage for recipe in self.recipes],
            "seed": self.seed,
            "size": self.spec.height,
            "compile": self.compile,
            **self.origins,
            # The folder of the images may have moved.
            **self.about.model_dump(exclude={"data"}),
            **values,
        }


class Watcher(Protocol):
    """Observes a run, for metrics."""

    def stepped(self, recipe: Recipe, step: int, steps: int, count: int, rate: float, progress: Progress) -> None:
        """Called after step ``step`` of ``steps``, on ``count`` images at learning rate ``rate``.

        ``progress`` has the sums of the epoch.
        """

    def logged(self, record: dict[str, Any]) -> None:
        """Called after an epoch, with the record that was appended to ``log.jsonl``."""


def stage_summary(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's hyper-parameters, without those that it does not use."""
    return {key: value for key, value in asdict(recipe).items() if value is not None}


def stage_record(recipe: Recipe) -> TrainedStage:
    """Return the record of a stage that trains by a recipe."""
    return TrainedStage.model_validate(stage_summary(recipe))
