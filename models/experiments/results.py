"""Results files: one a trained row and seed, with all that its figure rests on."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from models.atomic_file import whole_file
from models.checkpoint import Evaluation, Strict
from models.legacy_names import current_names


class ResultError(ValueError):
    """A results file can't be read or belongs to another run; the message says what to do."""


class Result(Strict):
    """What a row gave: ``held_out`` is measured on training images kept apart, ``test`` once, where it is reported.

    ``recipe`` are the stage's hyper-parameters and ``start`` is the row, or the checkpoint, that it started from.
    ``hours`` are the stage's own, by the clock, pauses and other work on the machine counted; ``cpu_hours`` what it
    had of the processor, all cores together. ``machine`` is where it was trained and measured.
    """

    row: str
    title: str
    schedule: str
    seed: int
    dataset: str
    architecture: str
    recipe: Annotated[dict[str, Any], BeforeValidator(current_names)]
    start: str | None
    train_images: int
    held_out_images: int
    precision: str
    hours: float | None
    cpu_hours: float | None
    machine: dict[str, str]
    command: str
    code: str
    held_out: Evaluation
    test: Evaluation | None

    @property
    def network(self) -> str:
        """Data set and depth, for instance cifar10_38: networks that the same images may be classified with."""
        return f"{self.dataset}_{self.architecture.rpartition('_')[2]}"

    @property
    def figures(self) -> Evaluation:
        """The test's figures, or in a run for choosing those of held-out images."""
        return self.test or self.held_out


def write_result(file: Path, result: Result) -> None:
    """Write a results file; it appears whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as results:
        results.write(json.dumps(result.model_dump(mode="json"), indent=1).encode() + b"\n")


def read_result(file: Path) -> Result:
    """Read a results file; raises ResultError."""
    try:
        return Result.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise ResultError(f"{file} is no results file of `skipnet reproduce`: {error}") from error


def read_results(places: Iterable[Path]) -> list[Result]:
    """Read results files, and all those in folders; raises ResultError where there are none."""
    places = list(places)
    for place in places:
        if not place.exists():
            raise ResultError(f"{place} is not here; `skipnet reproduce cifar10` makes results files")
    files = [file for place in places for file in (sorted(place.rglob("*.json")) if place.is_dir() else [place])]
    if not files:
        raise ResultError(f"{', '.join(map(str, places))}: no results files; `skipnet reproduce cifar10` makes them")
    return [read_result(file) for file in files]


def stage_hours(log: Path, stage: str) -> tuple[float, float]:
    """Return the hours that a run's ``log.jsonl`` counts for a stage: by the clock, and of the processor."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    spent = [row for row in rows if row["stage"] == stage]
    return sum(row["seconds"] for row in spent) / 3600, sum(row["cpu_seconds"] for row in spent) / 3600
