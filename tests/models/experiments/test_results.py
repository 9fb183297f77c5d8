"""Results files with current and earlier names are read, and drawn as a table and a chart."""

import hashlib
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.errors import UserError
from models.experiments.catalogue import find_row
from models.experiments.results import Result, read_result, read_results
from models.experiments.results_curve import draw_curve
from models.experiments.results_table import draw_table
from models.training.recipes import find_recipe
from models.training.types import stage_summary

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def result_of(row: str, seed: int, accuracy: float, computation: float) -> Result:
    [shipped] = read_results([RESULTS / "cifar10_38" / "short" / "plain-0.json"])
    assert shipped.test
    figures = shipped.test.model_copy(update={"accuracy": accuracy, "computation_percentage": computation})
    return shipped.model_copy(update={"row": row, "title": f"{row} <&>", "seed": seed, "test": figures})


def test_the_table_joins_seeds_and_shows_published_figures() -> None:
    results = [result_of("hrl-70", 0, 0.92, 68), result_of("other", 0, 0.9, 50), result_of("hrl-70", 1, 0.93, 70)]
    lines = draw_table(results).splitlines()
    assert {line.count("|") for line in lines} == {12}
    assert "| 92.75 @ 70.3 (public checkpoint) | 92.50 (92.00-93.00) @ 69.0 (68.0-70.0) |" in lines[2]
    assert "| 0, 1 |" in lines[2]
    assert "| 90.00 @ 50.0 |" in lines[3]
    other = result_of("plain", 0, 0.68, 100).model_copy(update={"dataset": "cifar100", "architecture": "cifar100_x_38"})
    results.insert(0, other)
    line = draw_table(results).splitlines()[4]
    assert line.startswith("| cifar100_38 | `plain` | plain <&> | 68.54 @ 100.0 (Table 2) |")


def test_the_curve_has_a_point_for_each_seed_and_published_figure() -> None:
    results = [result_of("hrl-70", 0, 0.92, 68), result_of("other", 0, 0.9, 50), result_of("hrl-70", 1, 0.93, 70)]
    ablation = result_of("alpha-1", 0, 0.9, 50)
    used = ElementTree.fromstring(draw_curve([*results, ablation])).iter("{http://www.w3.org/2000/svg}use")
    markers = Counter(style for each in used if (style := each.get("style", "")).startswith("fill"))
    # One more of each is in the legend.
    assert sorted(count - 1 for count in markers.values()) == [1, 2, 2]


def test_a_file_that_is_not_a_result_is_named(tmp_path: Path) -> None:
    for content, message in ((None, "does not exist"), ("{}", "not a results file"), ("[]", "not a results file")):
        if content is not None:
            (tmp_path / "a.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_results([tmp_path / "a.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="reproduce"):
        read_results([tmp_path / "empty"])


def test_the_results_in_the_repository_are_read_and_drawn() -> None:
    results = read_results([RESULTS])
    assert (RESULTS / "table.md").read_text() == draw_table(results)
    assert (RESULTS / "curve.svg").read_text() == draw_curve(results)


def numbers(value: Any) -> Iterator[str]:
    """Yield every number, truth value and null of a JSON value, in order."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif not isinstance(value, str):
        yield repr(float(value)) if type(value) in (int, float) else repr(value)


def test_renaming_the_rows_changed_no_figure() -> None:
    """The digest was computed before the rows and the keys of results files got their current names."""
    files = [" ".join(numbers(json.loads(file.read_text()))) for file in RESULTS.rglob("*.json")]
    digest = hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()
    assert digest == "6da85ed33fbc91fe79d072670bf01190fb406e3c052899a567ec0a409ef8e49e"


def test_a_file_under_earlier_names_is_the_same_result(tmp_path: Path) -> None:
    current = RESULTS / "cifar10_38" / "short" / "distilled-long-sp-0.json"
    values = json.loads(current.read_text())
    values |= {"row": "patient-sp", "start": "patient", "held_out": values.pop("validation")}
    values["held_out"]["split"] = "held_out"
    values["held_out_images"] = values.pop("validation_images")
    recipe = values["recipe"]
    recipe["name"] = "taught"
    for old, new in (("open_bias", "gate_bias_init"), ("distil", "distillation_weight"), ("rungs", "operating_points")):
        recipe[old] = recipe.pop(new)
    for point in recipe["rungs"]:
        point["target"] = point.pop("target_rate")
    (tmp_path / "earlier.json").write_text(json.dumps(values))
    assert read_result(tmp_path / "earlier.json") == read_result(current)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("patient", "distilled-long"),
        ("plain-taught of 38 layers", "plain-distilled of 38 layers"),
        ("deeper + deeper-gates", "grown-gates-sp + grown-gates"),
        ("runs/patient-0/plain", "runs/patient-0/plain"),
        ("plain", "plain"),
        (None, None),
    ],
)
def test_the_start_of_a_run_gets_its_current_name(start: str | None, expected: str | None) -> None:
    values = json.loads((RESULTS / "cifar10_38" / "short" / "plain-0.json").read_text())
    assert Result.model_validate(values | {"start": start}).start == expected


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("cifar10_38", "distilled-long-hrl-low-rate-online"),
        ("cifar10_110", "grown-gates"),
        ("cifar10_110", "grown-gates-sp"),
    ],
)
def test_the_recipe_of_a_finished_row_is_unchanged(network: str, name: str) -> None:
    row = find_row(name, "short")
    recipe = stage_summary(replace(find_recipe(row.recipe, row.stage), **row.changes))
    result = read_result(RESULTS / network / "short" / f"{name}-0.json")
    assert json.loads(json.dumps(recipe)) == result.recipe
