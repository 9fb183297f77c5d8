"""The options of a training run: each is declared here, for the command line and for the job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_settings import NoDecode

from models.data.datasets import VALIDATION_IMAGES, Statistics
from models.training.recipes import FINETUNE, Stage, read_changes

STAGES: dict[str, tuple[Stage, ...]] = {
    "plain": ("plain",),
    "sp": ("sp",),
    "hrl": ("hrl",),
    "sp,hrl": ("sp", "hrl"),
}
"""The values of the option and the stages that they stand for."""


def parse_changes(changes: object) -> object:
    """Return changes given as JSON in the recipe's types, and a mapping as it is."""
    return read_changes(changes) if isinstance(changes, str) else changes


def parse_numbers(numbers: object) -> object:
    """Return three numbers separated by commas as a list, and anything else as it is.

    Raises ValueError for another text.
    """
    if not isinstance(numbers, str):
        return numbers
    try:
        red, green, blue = (float(number) for number in numbers.split(","))
    except ValueError as error:
        raise ValueError("three numbers separated by commas are expected") from error
    return [red, green, blue]


class TrainingOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of every training."""

    data: Path | None = Field(None, description="local folder of the data set; default: the hub")
    limit: int | None = Field(None, ge=1, description="train on this many images only")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")


class NetworkOptions(TrainingOptions):
    """Options for training a network of the catalogue."""

    epochs: int | None = Field(None, ge=1, description="number of epochs of each stage; default: the recipe's")
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile for the supervised step")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of convolutions while training; auto: bfloat16 if the processor multiplies it in hardware"
    )


class JobOptions(NetworkOptions):
    """Options of one job, as `skipnet train` has them. ``changes`` replace values of the recipe."""

    arch: str = Field(
        "",
        description="architecture, for instance cifar10_rnn_gate_38; default of finetune: that of --init, with gates",
    )
    dataset: str = Field(description="cifar10, cifar100, svhn, imagenet or imagefolder")
    recipe: str = Field(
        "paper", description="hyper-parameters: paper, short, budget, multi_budget, adaptive, distilled or finetune"
    )
    stages: str | None = Field(
        None,
        pattern=f"^({'|'.join(STAGES)})$",
        description="plain, sp, hrl or sp,hrl; default: sp,hrl, or hrl if --init has gates already, or plain for a "
        "network without gates; hrl alone starts from --init",
    )
    init: Path | None = Field(
        None,
        description="checkpoint to start from, or what skipnet import takes; a dense network can get gates, or a "
        "routed one lose them",
    )
    teacher: Path | None = Field(
        None,
        description="teacher of recipes multi_budget, adaptive and distilled: a dense network's checkpoint, or of "
        "skipnet teach teacher_logits.safetensors, or teacher.safetensors as an online teacher; default: --init",
    )
    batch: int | None = Field(
        None, ge=1, description="images of a step; default: the recipe's, of finetune by the number of images"
    )
    # A JSON object on the command line. pydantic-settings would decode it before its values are checked.
    changes: Annotated[Mapping[str, Any], NoDecode, BeforeValidator(parse_changes)] = Field(
        {}, description="JSON object of values that replace the recipe's own; models/training/recipes.py names them"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order, augmentation and sampled gates")
    held_out: int = Field(
        VALIDATION_IMAGES,
        ge=1,
        description="validation images, taken from the training images; default of finetune: the folder's own, or a "
        "fifth of each class",
    )
    skip_damaged: bool = Field(
        False, description="leave out images that cannot be read; decodes all of them once before training"
    )
    size: int | None = Field(
        None, ge=32, le=2048, description="side of the input in pixels; default: the architecture's"
    )
    mean: Annotated[Statistics | None, NoDecode, BeforeValidator(parse_numbers)] = Field(
        None,
        description="mean of red, green and blue in 0..1, as 0.485,0.456,0.406; default: that of --init or the data",
    )
    std: Annotated[Statistics | None, NoDecode, BeforeValidator(parse_numbers)] = Field(
        None, description="deviation of red, green and blue, as 0.229,0.224,0.225; default: that of --init or the data"
    )
    workers: int = Field(2, ge=0, description="processes that decode a data set too large for memory")
    output: Path | None = Field(None, description="folder of the run; default: runs/<arch>, of finetune runs/<model>")

    @property
    def finetunes(self) -> bool:
        """Whether the run fine-tunes. It then keeps the input of --init, and makes a new head if the labels differ."""
        return self.recipe == FINETUNE

    @property
    def splits_folder(self) -> bool:
        """Whether the validation images are a share of each class or have their own folder."""
        return self.finetunes and "held_out" not in self.model_fields_set

    @property
    def folder(self) -> Path:
        """Return the folder of the run."""
        return self.output or Path("runs") / self.arch
