"""A cascade on disk: a ``<repository>/<model>/<version>/config.json`` that names its stages. It has no weights."""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.cascade.confidence import Measure
from models.checkpoint import CASCADE, CONFIG, WEIGHTS, Checkpoint, CheckpointError, read_checkpoint
from models.persistence.atomic_file import whole_file
from models.preprocessing import InputSpec

Combination = Literal["last", "mean"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(Strict):
    """One network of a cascade.

    ``model`` and ``version`` name a checkpoint in the cascade's own repository. The stage's class logits are divided by
    ``temperature`` (Guo et al. 2017). An image is escalated to the next stage if the confidence of this stage's
    probabilities is below ``margin``. The last stage has no margin.
    """

    model: str
    version: int = Field(ge=0)
    execute_threshold: float = Field(ge=0, le=1)
    temperature: float = Field(1.0, gt=0)
    margin: float | None = Field(None, ge=0, le=1)


class CascadePoint(Strict):
    """One operating point of the accuracy-compute curve, measured on validation images.

    ``thresholds`` [S] are the stages' execute thresholds. ``margins`` [S-1] are the confidences below which an image is
    escalated. ``escalated`` [S-1] is the share of all images that reach each later stage. ``mac_share`` is the mean
    MACs of an image over the dense MACs of the last stage.
    """

    thresholds: tuple[float, ...]
    margins: tuple[float, ...]
    accuracy: float
    mac_share: float
    escalated: tuple[float, ...]


class CascadeEvaluation(Strict):
    """What `skipnet evaluate` measured of a cascade.

    Shares and accuracies are in 0..1. MACs are means over the images.
    """

    dataset: str
    split: str
    images: int
    engine: str
    accuracy: float
    macs: float
    dense_macs: int
    escalated: tuple[float, ...]
    accuracy_per_class: dict[str, float]


class CascadeConfig(Strict):
    """``config.json`` of a cascade. Labels and input are those of every stage.

    ``escalate`` is the share of a stage's validation images below its margin. The margins were chosen by it.
    """

    kind: Literal["cascade"] = CASCADE
    stages: tuple[Stage, ...] = Field(min_length=2)
    measure: Measure = "margin"
    combination: Combination = "mean"
    escalate: float | None = None
    labels: list[str] = Field(min_length=1)
    input: InputSpec
    curve: list[CascadePoint] = []
    evaluation: CascadeEvaluation | None = None
    code: str

    @model_validator(mode="after")
    def check_margins(self) -> "CascadeConfig":
        if any((stage.margin is None) != (stage is self.stages[-1]) for stage in self.stages):
            raise ValueError("every stage but the last needs a margin, and the last has none")
        return self


@dataclass(frozen=True)
class Cascade:
    """A cascade with the checkpoints of its stages."""

    folder: Path
    config: CascadeConfig
    stages: tuple[Checkpoint, ...]

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> int:
        """The number of the folder, or 0 for a cascade outside of a repository."""
        return int(self.folder.name) if self.folder.name.isdecimal() else 0

    @property
    def dense_macs(self) -> int:
        """MACs of the last stage's dense network, with which the cascade is compared."""
        return self.stages[-1].macs.dense

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The stages' execute thresholds [S], then the margins [S-1], as in a row of `CascadeEngine.run`."""
        margins = tuple(stage.margin for stage in self.config.stages if stage.margin is not None)
        return (*(stage.execute_threshold for stage in self.config.stages), *margins)

    @cached_property
    def columns(self) -> tuple[slice, ...]:
        """Each stage's columns of the decisions [N, B-1] of all B blocks.

        A later stage's first block has a column too.
        """
        ends = np.cumsum([len(stage.macs.blocks) for stage in self.stages]) - 1
        return (slice(0, int(ends[0])), *(slice(int(start), int(end)) for start, end in pairwise(ends)))


def read_cascade_config(folder: Path) -> CascadeConfig:
    """Read a cascade's ``config.json``.

    Raises CheckpointError if it is missing or damaged.
    """
    try:
        return CascadeConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read as a cascade: {error}") from error


def read_cascade(folder: Path) -> Cascade:
    """Read a cascade and the checkpoints of its stages, which are in the same repository.

    Raises CheckpointError, which names the stage, if a stage is missing, is damaged, or has other labels or another
    input.
    """
    config = read_cascade_config(folder)
    stages = []
    for number, stage in enumerate(config.stages):
        place = f"{folder / CONFIG}: stage {number}, {stage.model} version {stage.version}"
        source = folder.parents[1] / stage.model / str(stage.version)
        if not (source / WEIGHTS).is_file():
            raise CheckpointError(f"{place}, is not in the repository; put it there or build the cascade again")
        try:
            checkpoint = read_checkpoint(source)
        except CheckpointError as error:
            raise CheckpointError(f"{place}, cannot be used: {error}") from error
        if (checkpoint.config.labels, checkpoint.config.input) != (config.labels, config.input):
            raise CheckpointError(f"{place}, differs in labels or input from the cascade; build the cascade again")
        stages.append(checkpoint)
    return Cascade(folder, config, tuple(stages))


def write_cascade_config(folder: Path, config: CascadeConfig) -> None:
    """Write a cascade's ``config.json``, or replace it at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / CONFIG) as file:
        file.write(json.dumps(config.model_dump(mode="json"), indent=2).encode() + b"\n")
