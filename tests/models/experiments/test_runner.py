"""Rows of the paper's table, trained on a few real images: killed and resumed, finished, for choosing only."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from models import SHIPPED
from models.architectures import find_architecture
from models.checkpoint import CalibrationPoint, find_version, read_checkpoint, read_config
from models.data.datasets import find_dataset
from models.data.source import read_source
from models.engines import load_engine
from models.evaluation.calibration import BISECTIONS, calibrate, log_odds
from models.experiments.results import Result, ResultError, read_result, read_results
from models.experiments.results_table import draw_figure, draw_report
from models.experiments.row import PUBLISHED, Published, Row, Schedule
from models.experiments.rows import UnknownRow, ablations, all_groups, find_row, find_runs
from models.experiments.runner import Reproduction, choose_threshold, reproduce
from models.training.job import JobOptions
from models.training.loop import stage_summary
from models.training.recipes import OperatingPoint, find_recipe
from tests.models.data.test_data import write_cifar10
from tests.models.training.interruption import Killed, KilledAfter, quiet

TRAIN, TEST, HELD_OUT = 36, 16, 20
TINY = {"epochs": 2, "batch": 8, "rate": 0.01}
RESULTS = Path(__file__).parents[3] / "docs" / "results"


def never(steps: Iterator[int]) -> Iterator[int]:
    del steps
    raise AssertionError("trained again")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images of CIFAR-10, in the hub's schema."""
    folder = tmp_path_factory.mktemp("cifar10")
    write_cifar10(folder, TRAIN, TEST)
    return folder


def plan_in(folder: Path, data: Path, choose: bool = False) -> Reproduction:
    shared = JobOptions("", "cifar10", folder, data, held_out=HELD_OUT, compile="off", precision="float32")
    return Reproduction(shared, 38, "short", folder / "results", choose, "skipnet reproduce cifar10")


def tiny(name: str) -> Row:
    row = find_row(name, "short")
    return replace(row, changes={**row.changes, **TINY})


def test_a_killed_row_goes_on_and_gives_the_same_figures(tmp_path: Path, data: Path) -> None:
    row = tiny("sp-first")
    whole = reproduce(plan_in(tmp_path / "whole", data), row, 0, save_every=0, show=quiet)

    plan = plan_in(tmp_path / "killed", data)
    killing = KilledAfter(3)
    with pytest.raises(Killed):
        reproduce(plan, row, 0, save_every=0, show=killing)
    assert not plan.results.exists()
    resumed = reproduce(plan, row, 0, save_every=0, show=quiet)
    assert killing.taken == 3
    apart = {"hours", "cpu_hours"}
    assert resumed.model_dump(exclude=apart) == whole.model_dump(exclude=apart)
    assert resumed.hours and resumed.cpu_hours
    assert resumed.test and (resumed.test.images, resumed.held_out.images) == (TEST, HELD_OUT)
    assert (resumed.train_images, resumed.held_out_images) == (TRAIN - HELD_OUT, HELD_OUT)

    [written] = read_results([plan.results])
    assert written == reproduce(plan, row, 0, save_every=0, show=never) == resumed
    with pytest.raises(ResultError, match="epochs=2"):
        reproduce(plan, replace(row, changes={**row.changes, "epochs": 3}), 0, save_every=0, show=never)


def test_hybrid_learning_starts_from_that_seeds_supervised_run(tmp_path: Path, data: Path) -> None:
    plan = plan_in(tmp_path, data)
    runs = plan.runs(["alpha-1"], [7])
    assert [(row.name, seed) for row, seed in runs] == [("sp-first", 7), ("alpha-1", 7)]
    for row, seed in runs:
        gently = replace(tiny(row.name), changes={**tiny(row.name).changes, "rate": 1e-4})
        result = reproduce(plan, gently, seed, save_every=300, show=quiet)
    assert (result.start, result.recipe["alpha"], result.command) == (
        "sp-first", 1.0, "skipnet reproduce cifar10 --rows alpha-1 --seeds 7",
    )  # fmt: skip
    config = read_config(tmp_path / "cifar10_38" / "short" / "alpha-1-7" / "hrl")
    assert [stage["stage"] for stage in config.training["stages"]] == ["sp", "hrl"]
    assert config.evaluation == result.test
    assert len(config.calibration) > 10


def test_a_row_may_be_the_mean_of_others(tmp_path: Path, data: Path) -> None:
    plan = plan_in(tmp_path, data)
    mean = replace(find_row("alpha-1", "short"), name="alpha-1", averaged=("alpha-2",), start="alpha-0.5")
    gentle = {"epochs": 1, "batch": 8, "rate": 1e-4}
    for row, changes in (("sp-first", TINY), ("alpha-0.5", gentle), ("alpha-2", gentle)):
        trained = replace(find_row(row, "short"), changes={**find_row(row, "short").changes, **changes})
        reproduce(plan, trained, 0, save_every=300, show=quiet)
    result = reproduce(plan, mean, 0, save_every=300, show=never)
    assert result.start == "alpha-0.5 + alpha-2" and result.hours == 0
    assert result == reproduce(plan, mean, 0, save_every=300, show=never)
    assert "the mean of alpha-0.5 + alpha-2 |" in draw_report([result])
    folder = tmp_path / "cifar10_38" / "short"
    parts = [read_checkpoint(folder / f"alpha-{alpha}-0" / "hrl") for alpha in ("0.5", "2")]
    found = read_checkpoint(folder / "alpha-1-0" / "hrl").network.state_dict()
    name = "blocks.0.residual.0.weight"
    expected = sum(part.network.state_dict()[name] for part in parts) / 2
    assert found[name].tolist() == expected.tolist()
    config = read_config(folder / "alpha-1-0" / "hrl")
    assert [stage["stage"] for stage in config.training["stages"]] == ["sp", "hrl", "soup"]


def test_rows_that_are_averaged_are_trained_first() -> None:
    names = [row.name for row, _ in find_runs(["accurate-70-hrl-mean"], "short")]
    for part in ("long-half-more", "long-half-again"):
        assert names.index(f"accurate-70-hrl-{part}") < len(names) - 1
    assert names[-1] == "accurate-70-hrl-mean" and len(set(names)) == len(names)


def test_a_finished_row_is_known_where_fewer_images_are_tried_than_held_out(tmp_path: Path, data: Path) -> None:
    plan, row = plan_in(tmp_path, data), tiny("sp-first")
    plan = replace(plan, shared=replace(plan.shared, limit=8))
    result = reproduce(plan, row, 0, save_every=300, show=quiet)
    assert reproduce(plan, row, 0, save_every=300, show=never) == result


def test_choosing_leaves_the_test_images_alone(tmp_path: Path, data: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").symlink_to(data / "train.parquet")
    plan = plan_in(tmp_path / "runs", tmp_path / "data", choose=True)
    result = reproduce(plan, tiny("plain"), 0, save_every=300, show=quiet)
    assert result.test is None
    assert result.figures.split == "held_out"
    assert (tmp_path / "runs" / "results" / "cifar10_38" / "short-choose" / "plain-0.json").is_file()


def test_the_curve_is_fine_where_a_threshold_is_looked_for(data: Path) -> None:
    checkpoint = read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None))
    engine = load_engine(checkpoint)
    try:
        source = read_source(find_dataset("cifar10"), "test", data)
        coarse, fine = (calibrate(checkpoint, engine, source, at_most) for at_most in (None, 60.0))
    finally:
        engine.close()
    assert [point.threshold for point in fine] == sorted(point.threshold for point in fine)
    assert len(fine) == len(coarse) + BISECTIONS

    def step(curve: list[CalibrationPoint]) -> float:
        first = next(number for number, point in enumerate(curve) if point.computation_percentage <= 60)
        return log_odds(curve[first].threshold) - log_odds(curve[first - 1].threshold)

    assert step(fine) == pytest.approx(step(coarse) / 2**BISECTIONS, rel=1e-3)


def test_networks_of_other_depths_and_data_sets_have_folders_of_their_own(tmp_path: Path, data: Path) -> None:
    plan = plan_in(tmp_path, data)
    deep = replace(plan, depth=110, shared=replace(plan.shared, dataset="cifar100"))
    options = deep.options(find_row("hrl-50", "short"), 1)
    assert options.arch == "cifar100_rnn_gate_110"
    assert (options.init, options.output) == (
        tmp_path / "cifar100_110" / "short" / "sp-1" / "sp", tmp_path / "cifar100_110" / "short" / "hrl-50-1",
    )  # fmt: skip


def test_what_is_published_is_of_rows_that_there_are() -> None:
    for network, row in PUBLISHED:
        dataset, depth = network.split("_")
        find_architecture(f"{dataset}_{find_row(row, 'short').routing}_{depth}")


def test_the_threshold_is_the_best_one_within_the_budget() -> None:
    curve = [
        CalibrationPoint(threshold=threshold, accuracy=accuracy, computation_percentage=computation, mac_share=0)
        for threshold, accuracy, computation in ((0.2, 0.93, 75), (0.5, 0.91, 60), (0.7, 0.92, 55), (0.9, 0.80, 40))
    ]
    assert choose_threshold(curve, 70, 0.5) == 0.7
    assert choose_threshold(curve, 30, 0.5) == 0.5
    assert choose_threshold(curve, None, 0.5) == 0.5


@pytest.mark.parametrize("schedule", ["paper", "short"])
def test_every_row_is_a_recipe_and_follows_its_start(schedule: Schedule) -> None:
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


def test_only_what_was_asked_for_and_what_it_needs_is_run() -> None:
    assert [(row.name, seed) for row, seed in find_runs(["hrl-70"], "short", [1])] == [
        ("plain", 0), ("sp", 1), ("hrl-70", 1),
    ]  # fmt: skip
    assert [row.name for row, _ in find_runs(["hrl-70"], "short", [1], starts=False)] == ["hrl-70"]
    with pytest.raises(UnknownRow, match=r"'hrl'; there are table, ablations, recipe, grown, patient and plain, sp"):
        find_runs(["hrl"], "short")


@pytest.mark.parametrize("starts", [True, False])
def test_the_row_that_teaches_is_run_first(starts: bool) -> None:
    names = [(row.name, seed) for row, seed in find_runs(["at-once"], "short", [1], starts)]
    assert names == [("plain", 0), *([("plain", 1)] if starts else []), ("at-once", 1)]


def test_a_row_is_taught_by_another_than_it_starts_from(tmp_path: Path, data: Path) -> None:
    options = plan_in(tmp_path, data).options(find_row("adaptive", "short"), 2)
    folder = tmp_path / "cifar10_38" / "short"
    assert (options.init, options.teacher) == (folder / "sp-2/sp", folder / "plain-0/plain")
    assert ("plain", 0) in [(row.name, seed) for row, seed in find_runs(["adaptive"], "short", [2])]


def test_ablations_that_begin_afresh_are_equally_long() -> None:
    rows = [row for row in ablations("short") if row.start is None and row.name != "sp-longer"]
    assert len({row.changes["epochs"] for row in rows}) == 1
    hard, soft = find_row("gates-hard", "short"), find_row("gates-soft", "short")
    assert soft.changes == {**hard.changes, "gates": "soft"}
    assert hard.changes["operating_points"] == (OperatingPoint(1, 0.5, 0.6),)


def result_of(row: str, seed: int, accuracy: float, computation: float) -> Result:
    [shipped] = read_results([RESULTS / "cifar10_38" / "short" / "plain-0.json"])
    assert shipped.test
    figures = shipped.test.model_copy(update={"accuracy": accuracy, "computation_percentage": computation})
    return shipped.model_copy(update={"row": row, "title": f"{row} <&>", "seed": seed, "test": figures})


def test_the_report_puts_seeds_together_beside_what_is_published() -> None:
    results = [result_of("hrl-70", 0, 0.92, 68), result_of("other", 0, 0.9, 50), result_of("hrl-70", 1, 0.93, 70)]
    assert PUBLISHED["cifar10_38", "hrl-70"] == Published(92.75, 70.27, "public checkpoint")
    lines = draw_report(results).splitlines()
    assert {line.count("|") for line in lines} == {12}
    assert "| 92.75 @ 70.3 (public checkpoint) | 92.50 (92.00-93.00) @ 69.0 (68.0-70.0) |" in lines[2]
    assert "| 0, 1 |" in lines[2]
    assert "| 90.00 @ 50.0 |" in lines[3]
    other = result_of("plain", 0, 0.68, 100).model_copy(update={"dataset": "cifar100", "architecture": "cifar100_x_38"})
    results.insert(0, other)
    line = draw_report(results).splitlines()[4]
    assert line.startswith("| cifar100_38 | `plain` | plain <&> | 68.54 @ 100.0 (Table 2) |")
    picture = ElementTree.fromstring(draw_figure(results))
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}circle")) == 3 + 2 + 3


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    for content, message in ((None, "is not here"), ("{}", "no results file")):
        if content is not None:
            (tmp_path / "a.json").write_text(content)
        with pytest.raises(ResultError, match=message):
            read_results([tmp_path / "a.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultError, match="reproduce"):
        read_results([tmp_path / "empty"])


def test_the_results_in_the_repository_are_read_and_drawn() -> None:
    results = read_results([RESULTS])
    assert (RESULTS / "table.md").read_text() == draw_report(results)
    assert (RESULTS / "curve.svg").read_text() == draw_figure(results)


@pytest.mark.parametrize(
    ("network", "name"),
    [("cifar10_38", "patient-hrl-slow-live"), ("cifar10_110", "deeper-gates"), ("cifar10_110", "deeper")],
)
def test_a_finished_row_is_still_the_one_that_was_asked_for(network: str, name: str) -> None:
    row = find_row(name, "short")
    asked = stage_summary(replace(find_recipe(row.recipe, row.stage), **row.changes))
    result = read_result(RESULTS / network / "short" / f"{name}-0.json")
    assert json.loads(json.dumps(asked)) == result.recipe
