"""The catalogue of rows, read from the TOML files in ``rows/``."""

import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from models.errors import UserError
from models.experiments.row import TEACHER_NETWORKS, Row, Schedule
from models.persistence.legacy_names import ROWS

FOLDER = Path(__file__).parent / "rows"
FILES: dict[Schedule, tuple[str, ...]] = {
    "paper": ("table", "ablations"),
    "short": (
        "table",
        "distilled",
        "budget-70",
        "budget-60",
        "ablations",
        "recipe",
        "grown",
        "distilled-long",
        "static",
    ),
}
"""The files of each schedule, in the order of the results table."""
ROW = TypeAdapter(Row)


@cache
def all_groups(schedule: Schedule) -> dict[str, list[Row]]:
    """Return the rows of each group of a schedule."""
    groups: dict[str, list[Row]] = {}
    for name in FILES[schedule]:
        for row in read_rows(FOLDER / schedule / f"{name}.toml"):
            groups.setdefault(row.group, []).append(row)
    return groups


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a file: each of its ``[[rows]]`` with the values of its ``[defaults]``.

    ``without`` names values of the recipe that a row leaves unset, because TOML has no null. Raises ValueError for
    invalid values, with the file and the row.
    """
    content: dict[str, Any] = tomllib.loads(file.read_text())
    rows = []
    for each in content["rows"]:
        values = content["defaults"] | each
        unset = dict.fromkeys(values.pop("without", []))
        try:
            rows.append(ROW.validate_python(values | {"changes": values.get("changes", {}) | unset}))
        except (ValidationError, UserError) as error:
            raise ValueError(f"{file}, row {each.get('name')}: {error}") from error
    return rows


def all_rows(schedule: Schedule) -> dict[str, Row]:
    """Return all rows of a schedule by name."""
    return {row.name: row for rows in all_groups(schedule).values() for row in rows}


def find_row(name: str, schedule: Schedule) -> Row:
    """Return a row by its current name or by an earlier one.

    Raises UserError for an unknown one.
    """
    rows = all_rows(schedule)
    name = ROWS.get(name, name)
    if name not in rows:
        raise UserError(f"unknown row {name!r}; expected one of {', '.join([*all_groups(schedule), *rows])}")
    return rows[name]


def find_runs(
    names: Iterable[str], schedule: Schedule, seeds: Sequence[int] | None = None, starts: bool = True
) -> list[tuple[Row, int]]:
    """Return the rows and seeds of some rows or groups, in the order to run them.

    Each row runs with ``seeds``, or with its own if that is None. The run of its teacher comes before it. With
    ``starts``, the run that it starts from does too. Raises UserError for an unknown name.
    """
    groups = all_groups(schedule)
    runs: dict[tuple[str, int], tuple[Row, int]] = {}

    def add(row: Row, seed: int) -> None:
        if row.teacher is not None and row.teacher not in TEACHER_NETWORKS:
            add(find_row(row.teacher, schedule), 0)
        if starts and row.start_depth is None:
            for name in row.parts:
                add(find_row(name, schedule), row.seed_of_start(seed))
        runs[row.name, seed] = row, seed

    for name in names:
        for row in groups.get(ROWS.get(name, name)) or [find_row(name, schedule)]:
            for seed in row.seeds if seeds is None else seeds:
                add(row, seed)
    return list(runs.values())
