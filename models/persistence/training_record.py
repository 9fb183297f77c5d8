"""The training record of a checkpoint in its ``config.json``: how its weights were trained.

Only values that are set are written. Unknown values are kept.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from models.persistence.legacy_names import current_names

Number = int | float
"""An integer in the file stays an integer, so that it is written unchanged."""


class Sparse(BaseModel):
    """A frozen model that is written without the values that are unset or None."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_serializer(mode="wrap")
    def written(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialise(self)
        return {key: value for key, value in values.items() if key in self.model_fields_set and value is not None}


class PointRecord(Sparse):
    """An operating point of SP (`models.training.recipes.OperatingPoint`)."""

    share: Number
    threshold: Number
    target_rate: Number


class TrainedStage(Sparse):
    """One stage of a training: plain, sp, hrl, "imported" or "soup".

    A trained stage has the values of its recipe (`models.training.recipes.Recipe`) and ``name``, the recipe's.
    ``architecture`` is the network that it trained, if that is not the checkpoint's. ``teacher`` is the distillation
    teacher. Imported weights have the name of their file. A soup lists the stages of its other ``members``; the first
    member is the chain of stages before it.
    """

    architecture: str | None = None
    name: str | None = None
    stage: str
    rate: Number | None = None
    schedule: str | None = None
    iterations: int | None = None
    epochs: int | None = None
    batch: int | None = None
    weight_decay: Number | None = None
    decay_all: bool | None = None
    nesterov: bool | None = None
    warm_up: int | None = None
    gate_bias_init: Number | None = None
    operating_points: tuple[PointRecord, ...] | None = None
    target_annealing: tuple[Number, Number] | None = None
    target_rate_weight: Number | None = None
    distillation_weight: Number | None = None
    temperature: Number | None = None
    mixup: Number | None = None
    per_sample_spread: Number | None = None
    freeze_backbone: bool | None = None
    alpha: Number | None = None
    policy_weight: Number | None = None
    samples: int | None = None
    gate_logit_scale: Number | None = None
    statistics: str | None = None
    gates: str | None = None
    pure: bool | None = None
    seed: int | None = None
    teacher: str | None = None
    members: "tuple[tuple[TrainedStage, ...], ...]" = Field((), validation_alias=AliasChoices("members", "of"))

    def with_architecture(self, name: str) -> Self:
        """Return the stage with the name of the network that it trained, if it has none yet."""
        return self if self.architecture else self.model_copy(update={"architecture": name})


class Subnetwork(Sparse):
    """The network that a static subnetwork was taken from, and the indices of its blocks that were kept."""

    of: str
    blocks: tuple[int, ...]


class TrainingRecord(Sparse):
    """The training of a checkpoint: its data, its stages, and later changes of the weights.

    ``data`` is the folder of the images, if they were local. ``validation_files`` are the validation images of a folder
    of images, as paths in the folder of the training images, and ``validation_folder`` is the separate folder of the
    validation images. Without either, they are the first ``validation_images`` of a fixed random order. ``precision``
    is that of convolutions. ``temperature`` is the divisor of the class logits from temperature scaling.
    ``imported_from`` is a weights file of the public code, ``iter``, ``epoch`` and ``best_prec1`` are its progress.
    """

    imported_from: str | None = None
    iter: Number | None = None
    epoch: Number | None = None
    best_prec1: Number | None = None
    dataset: str | None = None
    data: str | None = None
    train_images: int | None = None
    validation_images: int | None = None
    validation_files: tuple[str, ...] | None = None
    validation_folder: str | None = None
    precision: str | None = None
    seed: int | None = None
    stages: tuple[TrainedStage, ...] = ()
    temperature: Number | None = None
    subnetwork: Subnetwork | None = None

    @model_validator(mode="before")
    @classmethod
    def rename(cls, values: Any) -> Any:
        """Return the values of an earlier version under the names of this one."""
        return current_names(values) if isinstance(values, Mapping) else values
