"""Read and write results files. Each has the figures of one run and how they were obtained."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from models.checkpoint import Evaluation, Strict
from models.errors import UserError
from models.persistence.atomic_file import whole_file
from models.persistence.legacy_names import ROWS, current_names


class Result(Strict):
    """The result of a run.

    ``recipe`` holds the stage's hyper-parameters. ``start`` is the row or the checkpoint that it started from.
    ``hours`` is the wall-clock time of the stage, pauses included; ``cpu_hours`` is its processor time, summed over the
    cores. ``machine`` describes the machine of training and measurement. ``code`` is the version of the code.
    ``validation`` has the figures on the validation images. ``test`` has those on the test images, or is None if the
    run was for choosing a recipe.
    """

    row: str
    title: str
    schedule: str
    seed: int
    dataset: str
    architecture: str
    recipe: dict[str, Any]
    start: str | None
    train_images: int
    validation_images: int
    precision: str
    hours: float | None
    cpu_hours: float | None
    machine: dict[str, str]
    command: str
    code: str
    validation: Evaluation
    test: Evaluation | None

    @model_validator(mode="before")
    @classmethod
    def read_earlier_names(cls, values: Any) -> Any:
        """Rename the keys and values of earlier versions of results files."""
        if not isinstance(values, dict):
            return values
        start = values.get("start")
        renamed = {"start": None if start is None else " + ".join(current_start(part) for part in start.split(" + "))}
        return current_names(values) | (renamed if "start" in values else {})

    @property
    def network(self) -> str:
        """Return the data set and the depth, for instance "cifar10_38". Results with the same value can be compared."""
        return f"{self.dataset}_{self.architecture.rpartition('_')[2]}"

    @property
    def figures(self) -> Evaluation:
        """Return the figures on the test images, or else on the validation images."""
        return self.test or self.validation


def current_start(name: str) -> str:
    """Return the current name of the row from which a run started. It may be followed by " of 38 layers"."""
    row, separator, depth = name.partition(" of ")
    return f"{ROWS.get(row, row)}{separator}{depth}"


def write_result(file: Path, result: Result) -> None:
    """Write a results file. It appears complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as results:
        results.write(json.dumps(result.model_dump(mode="json"), indent=1).encode() + b"\n")


def read_result(file: Path) -> Result:
    """Return a results file.

    Raises UserError if it cannot be read.
    """
    try:
        return Result.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{file} is not a results file of `skipnet reproduce`: {error}") from error


def read_results(places: Iterable[Path]) -> list[Result]:
    """Return results files, including all those in folders.

    Raises UserError if there are none.
    """
    places = list(places)
    for place in places:
        if not place.exists():
            raise UserError(f"{place} does not exist; `skipnet reproduce cifar10` writes results files")
    files = [file for place in places for file in (sorted(place.rglob("*.json")) if place.is_dir() else [place])]
    if not files:
        raise UserError(f"{', '.join(map(str, places))}: no results files; `skipnet reproduce cifar10` writes them")
    return [read_result(file) for file in files]


def stage_hours(log: Path, stage: str) -> tuple[float, float]:
    """Return the hours that a run's ``log.jsonl`` counts for a stage: wall-clock and processor time."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    spent = [line for line in lines if line["stage"] == stage]
    return sum(line["seconds"] for line in spent) / 3600, sum(line["cpu_seconds"] for line in spent) / 3600
