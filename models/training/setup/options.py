"""The options of a training run, as the command line has them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from models.data.validation_split import VALIDATION_IMAGES
from models.training.recipes import Stage


@dataclass(frozen=True)
class JobOptions:
    """The user's options; see `skipnet train --help`. ``changes`` replace values of the recipe."""

    arch: str
    dataset: str
    output: Path
    data: Path | None = None
    stages: tuple[Stage, ...] | None = None
    recipe: str = "paper"
    changes: Mapping[str, Any] = field(default_factory=dict)
    init: Path | None = None
    teacher: Path | None = None
    epochs: int | None = None
    batch: int | None = None
    seed: int = 0
    held_out: int = VALIDATION_IMAGES
    limit: int | None = None
    skip_damaged: bool = False
    size: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    workers: int = 2
