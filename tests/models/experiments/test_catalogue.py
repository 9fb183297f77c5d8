"""The rows are valid, follow their starts, and are found by current and earlier names."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.architectures import find_architecture
from models.errors import UserError
from models.experiments.catalogue import FILES, FOLDER, all_groups, all_rows, find_row, find_runs, read_rows
from models.experiments.published import Published, published_figures
from models.experiments.row import Row, Schedule
from models.persistence.legacy_names import ROWS
from models.training.recipes import OperatingPoint, find_recipe


@pytest.mark.parametrize("schedule", ["paper", "short"])
def test_every_row_has_a_recipe_and_follows_its_start(schedule: Schedule) -> None:
    runs = find_runs(all_groups(schedule), schedule)
    seen = set()
    for row, seed in runs:
        replace(find_recipe(row.recipe, row.stage), **row.changes)
        if row.start and row.start_depth is None:
            assert (row.start, row.seed_of_start(seed)) in seen
        elif row.start:
            assert find_row(row.start, schedule)
        seen.add((row.name, seed))
    assert len(seen) == len(runs) >= sum(map(len, all_groups(schedule).values()))


def test_every_file_of_rows_is_read() -> None:
    read = {FOLDER / schedule / f"{name}.toml" for schedule, names in FILES.items() for name in names}
    assert read == set(FOLDER.glob("*/*.toml"))


def test_changes_of_a_row_have_the_types_of_its_recipe() -> None:
    changes = find_row("distilled-long-sp", "short").changes
    assert changes["operating_points"] == (OperatingPoint(1 / 8, 0.0, 1.0), OperatingPoint(7 / 8, 0.5, 0.62))
    assert changes["target_annealing"] == (0.05, 0.5)
    assert find_row("one-target", "short").changes["per_sample_spread"] is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed = 0", r"row mine: .*seed\n.*Unexpected keyword argument"),
        ('stage = "wide"', r"row mine: .*stage\n.*Input should be 'plain', 'sp' or 'hrl'"),
        ("changes = { alfa = 1.0 }", "row mine: unknown recipe value 'alfa'"),
        ("changes = { samples = 0 }", "row mine: recipe value samples: Input should be greater than or equal to 1"),
    ],
)
def test_an_invalid_value_of_a_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "rows.toml"
    values = ['name = "mine"', 'title = "mine"', 'routing = "resnet"', 'recipe = "short"', line]
    if not line.startswith("stage"):
        values.append('stage = "plain"')
    file.write_text("\n".join(['[defaults]\ngroup = "table"', "[[rows]]", *values]))
    with pytest.raises(ValueError, match=f"(?s)rows.toml, {message}"):
        read_rows(file)


def test_earlier_names_are_found() -> None:
    assert find_row("patient-hrl-mean", "short") == find_row("distilled-long-hrl-soup", "short")
    assert find_runs(["patient"], "short") == find_runs(["distilled-long"], "short")
    rows = all_rows("short")
    assert set(ROWS.values()) <= set(rows) and not set(ROWS) & set(rows)


def test_published_figures_are_of_known_rows() -> None:
    for network, row in published_figures():
        dataset, depth = network.split("_")
        find_architecture(f"{dataset}_{find_row(row, 'short').routing}_{depth}")
    expected = Published("cifar10_38", "hrl-70", "public checkpoint", 92.75, 70.27)
    assert published_figures()["cifar10_38", "hrl-70"] == expected


def named(runs: list[tuple[Row, int]]) -> list[tuple[str, int]]:
    return [(row.name, seed) for row, seed in runs]


def test_a_row_runs_after_the_rows_that_it_needs() -> None:
    assert named(find_runs(["hrl-70"], "short", [1])) == [("plain", 0), ("sp", 1), ("hrl-70", 1)]
    assert named(find_runs(["hrl-70"], "short", [1], starts=False)) == [("hrl-70", 1)]
    with pytest.raises(
        UserError,
        match=r"unknown row 'hrl'; expected one of table, ablations, recipe, grown, distilled-long, static, plain, sp",
    ):
        find_runs(["hrl"], "short")


@pytest.mark.parametrize("starts", [True, False])
def test_a_row_runs_after_its_teacher(starts: bool) -> None:
    expected = [("plain", 0), *([("plain", 1)] if starts else []), ("at-once", 1)]
    assert named(find_runs(["at-once"], "short", [1], starts)) == expected


def test_a_soup_runs_after_its_parts() -> None:
    names = [name for name, _ in named(find_runs(["budget-70-hrl-soup"], "short"))]
    for part in ("long-half-more", "long-half-again"):
        assert names.index(f"budget-70-hrl-{part}") < len(names) - 1
    assert names[-1] == "budget-70-hrl-soup" and len(set(names)) == len(names)


def test_ablations_from_random_weights_are_equally_long() -> None:
    rows = [row for row in all_groups("short")["ablations"] if row.start is None and row.name != "sp-longer"]
    assert len({row.changes["epochs"] for row in rows}) == 1
    hard, soft = find_row("gates-hard", "short"), find_row("gates-soft", "short")
    assert soft.changes == {**hard.changes, "gates": "soft"}
    assert hard.changes["operating_points"] == (OperatingPoint(1, 0.5, 0.6),)
