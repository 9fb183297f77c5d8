"""Rows trained on a few real images: killed and resumed, finished, and measured on validation images."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models import SHIPPED
from models.checkpoint import CalibrationPoint, read_checkpoint, read_config
from models.data.datasets import find_dataset
from models.data.source import read_source
from models.engines import load_engine
from models.errors import UserError
from models.evaluation.calibration import BISECTIONS, calibrate, log_odds
from models.experiments.catalogue import find_row, find_runs
from models.experiments.measurement import choose_threshold
from models.experiments.plan import Plan
from models.experiments.results import Result, read_results
from models.experiments.results_table import draw_table
from models.experiments.row import Row
from models.experiments.runner import reproduce
from models.model_repository import find_version
from models.training.setup.options import NetworkOptions
from tests.models.data.parquet_files import write_cifar10
from tests.models.training.interruption import Killed, KilledAfter, quiet

TRAIN, TEST, HELD_OUT = 36, 16, 20
TINY = {"epochs": 2, "batch": 8, "rate": 0.01}


def never(steps: Iterator[int]) -> Iterator[int]:
    del steps
    raise AssertionError("trained again")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images of CIFAR-10, in the hub's schema."""
    folder = tmp_path_factory.mktemp("cifar10")
    write_cifar10(folder, TRAIN, TEST)
    return folder


def plan_in(folder: Path, data: Path, choose: bool = False) -> Plan:
    shared = NetworkOptions(data=data, compile="off", precision="float32")
    return Plan(
        "cifar10", 38, "short", shared, HELD_OUT, folder, folder / "results", choose, "skipnet reproduce cifar10"
    )


def tiny(name: str) -> Row:
    row = find_row(name, "short")
    return replace(row, changes={**row.changes, **TINY})


def figures(result: Result) -> dict[str, Any]:
    """Return a result without its times and engines: on a busy machine another engine may be the fastest."""
    dumped = result.model_dump(exclude={"hours", "cpu_hours"})
    for split in ("validation", "test"):
        del dumped[split]["engine"]
    return dumped


def test_a_killed_row_resumes_with_the_same_figures(tmp_path: Path, data: Path) -> None:
    row = tiny("sp-first")
    uninterrupted = reproduce(plan_in(tmp_path / "uninterrupted", data), row, 0, save_every=0, show=quiet)

    plan = plan_in(tmp_path / "killed", data)
    killing = KilledAfter(3)
    with pytest.raises(Killed):
        reproduce(plan, row, 0, save_every=0, show=killing)
    assert not plan.results.exists()
    resumed = reproduce(plan, row, 0, save_every=0, show=quiet)
    assert killing.taken == 3
    assert figures(resumed) == figures(uninterrupted)
    assert resumed.hours and resumed.cpu_hours
    assert resumed.test and (resumed.test.images, resumed.validation.images) == (TEST, HELD_OUT)
    assert (resumed.train_images, resumed.validation_images) == (TRAIN - HELD_OUT, HELD_OUT)

    [written] = read_results([plan.results])
    assert written == reproduce(plan, row, 0, save_every=0, show=never) == resumed
    with pytest.raises(UserError, match="epochs=2"):
        reproduce(plan, replace(row, changes={**row.changes, "epochs": 3}), 0, save_every=0, show=never)


def test_hrl_starts_from_the_supervised_run_of_the_same_seed(tmp_path: Path, data: Path) -> None:
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
    assert [stage.stage for stage in config.training.stages] == ["sp", "hrl"]
    assert config.evaluation == result.test
    assert len(config.calibration) > 10


def test_a_row_may_be_a_soup_of_others(tmp_path: Path, data: Path) -> None:
    plan = plan_in(tmp_path, data)
    mean = replace(find_row("alpha-1", "short"), name="alpha-1", soup=("alpha-2",), start="alpha-0.5")
    gentle = {"epochs": 1, "batch": 8, "rate": 1e-4}
    for row, changes in (("sp-first", TINY), ("alpha-0.5", gentle), ("alpha-2", gentle)):
        trained = replace(find_row(row, "short"), changes={**find_row(row, "short").changes, **changes})
        reproduce(plan, trained, 0, save_every=300, show=quiet)
    result = reproduce(plan, mean, 0, save_every=300, show=never)
    assert result.start == "alpha-0.5 + alpha-2" and result.hours == 0
    assert result == reproduce(plan, mean, 0, save_every=300, show=never)
    assert "soup of alpha-0.5 + alpha-2 |" in draw_table([result])
    folder = tmp_path / "cifar10_38" / "short"
    parts = [read_checkpoint(folder / f"alpha-{alpha}-0" / "hrl") for alpha in ("0.5", "2")]
    found = read_checkpoint(folder / "alpha-1-0" / "hrl").network.state_dict()
    name = "blocks.0.residual.0.weight"
    expected = sum(part.network.state_dict()[name] for part in parts) / 2
    assert found[name].tolist() == expected.tolist()
    config = read_config(folder / "alpha-1-0" / "hrl")
    assert [stage.stage for stage in config.training.stages] == ["sp", "hrl", "soup"]


def test_a_finished_row_is_read_if_the_limit_is_below_the_validation_images(tmp_path: Path, data: Path) -> None:
    plan, row = plan_in(tmp_path, data), tiny("sp-first")
    plan = replace(plan, shared=plan.shared.model_copy(update={"limit": 8}))
    result = reproduce(plan, row, 0, save_every=300, show=quiet)
    assert reproduce(plan, row, 0, save_every=300, show=never) == result


def test_choosing_does_not_measure_the_test_images(tmp_path: Path, data: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").symlink_to(data / "train.parquet")
    plan = plan_in(tmp_path / "runs", tmp_path / "data", choose=True)
    result = reproduce(plan, tiny("plain"), 0, save_every=300, show=quiet)
    assert result.test is None
    assert result.figures.split == "validation"
    assert (tmp_path / "runs" / "results" / "cifar10_38" / "short-choose" / "plain-0.json").is_file()


def test_the_curve_is_fine_near_the_budget(data: Path) -> None:
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


def test_each_depth_and_data_set_has_its_folder(tmp_path: Path, data: Path) -> None:
    plan = plan_in(tmp_path, data)
    deep = replace(plan, depth=110, dataset="cifar100")
    options = deep.options(find_row("hrl-50", "short"), 1)
    assert options.arch == "cifar100_rnn_gate_110"
    assert (options.init, options.output) == (
        tmp_path / "cifar100_110" / "short" / "sp-1" / "sp", tmp_path / "cifar100_110" / "short" / "hrl-50-1",
    )  # fmt: skip


def test_a_teacher_may_be_another_row_than_the_start(tmp_path: Path, data: Path) -> None:
    options = plan_in(tmp_path, data).options(find_row("adaptive", "short"), 2)
    folder = tmp_path / "cifar10_38" / "short"
    assert (options.init, options.teacher) == (folder / "sp-2/sp", folder / "plain-0/plain")
    assert ("plain", 0) in [(row.name, seed) for row, seed in find_runs(["adaptive"], "short", [2])]


def test_the_threshold_is_the_most_accurate_one_within_the_budget() -> None:
    curve = [
        CalibrationPoint(threshold=threshold, accuracy=accuracy, computation_percentage=computation, mac_share=0)
        for threshold, accuracy, computation in ((0.2, 0.93, 75), (0.5, 0.91, 60), (0.7, 0.92, 55), (0.9, 0.80, 40))
    ]
    assert choose_threshold(curve, 70, 0.5) == 0.7
    assert choose_threshold(curve, 30, 0.5) == 0.5
    assert choose_threshold(curve, None, 0.5) == 0.5


def test_runs_under_earlier_names_are_found(tmp_path: Path, data: Path) -> None:
    plan = plan_in(tmp_path, data)
    runs, results = tmp_path / "cifar10_38" / "short", tmp_path / "results" / "cifar10_38" / "short"
    start = plan.options(find_row("distilled-long-sp", "short"), 0)
    assert start.init == runs / "distilled-long-0" / "plain"
    assert plan.results_file("distilled-long", 0) == results / "distilled-long-0.json"
    (runs / "patient-0").mkdir(parents=True)
    results.mkdir(parents=True)
    (results / "patient-0.json").touch()
    start = plan.options(find_row("distilled-long-sp", "short"), 0)
    assert start.init == runs / "patient-0" / "plain"
    assert plan.results_file("distilled-long", 0) == results / "patient-0.json"
    (runs / "distilled-long-0").mkdir()
    assert plan.folder("distilled-long", 0) == runs / "distilled-long-0"


def test_a_row_may_start_from_the_most_executed_blocks_of_a_routed_network(tmp_path: Path, data: Path) -> None:
    plan = replace(plan_in(tmp_path, data), start=find_version(SHIPPED, "cifar10_rnn_gate_38", None))
    plan = replace(plan, held_out=16)
    row = replace(find_row("static-9", "short"), recipe="short", teacher=None, changes=TINY | {"epochs": 1})
    result = reproduce(plan, row, 0, save_every=300, show=quiet)
    assert (result.architecture, result.figures.computation_percentage) == ("cifar10_resnet_2-3-4", 100)
    assert result.figures.macs == result.figures.dense_macs < 46e6
    assert reproduce(plan, row, 0, save_every=300, show=never) == result


def test_a_network_without_this_depth_is_named_before_training(tmp_path: Path, data: Path) -> None:
    plan = replace(plan_in(tmp_path, data), depth=20)
    plan.check_architectures(plan.runs(["static-resnet"], None))
    with pytest.raises(UserError, match="unknown architecture 'cifar10_rnn_gate_20'"):
        plan.check_architectures(plan.runs(["hrl-70"], [0]))
