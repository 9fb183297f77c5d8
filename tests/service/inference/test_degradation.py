import itertools
from typing import Any, cast

import pytest

from models import SHIPPED
from models.cascade.config import read_cascade
from models.checkpoint import is_cascade, read_checkpoint
from models.model_repository import find_version
from service.inference.degradation import HIGH, LEVELS, LOWER_SECONDS, RAISE_SECONDS, Pressure, cheaper_point
from service.inference.dense_clock import DenseClock
from service.inference.route import OperatingPoint
from service.repository.loaded_cascade import LoadedCascade
from service.repository.loaded_model import LoadedModel

SIZE = 32
FULL, EMPTY = SIZE, 0
POINTS = [
    OperatingPoint(0.0, 1.0, 0.95),
    OperatingPoint(0.2, 0.8, 0.94),
    OperatingPoint(0.4, 0.6, 0.93),
    OperatingPoint(0.5, 0.55, 0.935),
    OperatingPoint(0.6, 0.4, 0.91),
    OperatingPoint(0.8, 0.1, 0.3),
]
USUAL = POINTS[1]


def shipped(name: str) -> LoadedModel:
    """Return a shipped model without an engine."""
    folder, engine, clock = find_version(SHIPPED, name, None), cast("Any", None), DenseClock([1], [0.0])
    if is_cascade(folder):
        return LoadedCascade(read_cascade(folder), engine, "branch", clock)
    return LoadedModel(read_checkpoint(folder), engine, "branch", clock)


def run(pressure: Pressure, waiting: int, start: float, seconds: float) -> list[int]:
    """Return the levels while ``waiting`` images wait, updated a hundred times a second."""
    return [pressure.update(waiting, start + step / 100) for step in range(round(seconds * 100))]


def pressed() -> Pressure:
    """Return a pressure at its highest level at the time 10."""
    pressure = Pressure(SIZE)
    assert run(pressure, FULL, 0, 10)[-1] == LEVELS
    return pressure


def test_the_level_rises_step_by_step_while_images_wait() -> None:
    pressure = Pressure(SIZE)
    pressure.update(EMPTY, 0)
    levels = run(pressure, FULL, 0.01, 2)
    assert set(levels) == set(range(LEVELS + 1))
    assert levels == sorted(levels)
    first = [levels.index(level) for level in range(1, LEVELS + 1)]
    assert all(later - earlier >= 100 * RAISE_SECONDS - 1 for earlier, later in itertools.pairwise(first))


def test_one_burst_does_not_change_the_level() -> None:
    pressure = Pressure(SIZE)
    run(pressure, EMPTY, 0, 1)
    assert run(pressure, FULL, 1, 0.03) == [0, 0, 0]
    # A hundred requests that arrive at once find the same queue.
    assert {pressure.update(FULL, 1.03) for _ in range(100)} == {0}
    assert set(run(pressure, EMPTY, 1.03, 1)) == {0}


def test_a_queue_between_the_two_limits_keeps_the_level() -> None:
    pressure = pressed()
    assert set(run(pressure, round(HIGH * SIZE / 2), 10, 20)) == {LEVELS}
    assert set(run(Pressure(SIZE), round(HIGH * SIZE / 2), 0, 20)) == {0}


def test_the_level_falls_slowly_when_the_queue_is_empty() -> None:
    levels = run(pressed(), EMPTY, 10, (LEVELS + 1) * LOWER_SECONDS)
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == 0
    first = [levels.index(level) for level in range(LEVELS)]
    assert all(earlier - later >= 100 * LOWER_SECONDS - 1 for earlier, later in itertools.pairwise(first))


def test_after_a_pause_without_requests_nothing_is_degraded() -> None:
    assert pressed().update(EMPTY, 10 + LEVELS * LOWER_SECONDS + 1) == 0


@pytest.mark.parametrize(
    ("share", "loss", "threshold"),
    [
        (0.75, 0.05, 0.5),  # the more accurate of the two within 0.6
        (0.5, 0.05, 0.6),
        (0.1, 0.05, 0.6),  # the cheapest within the largest loss
        (0.1, 0.02, 0.5),
        (0.1, 1.0, 0.8),
    ],
)
def test_the_point_of_a_share(share: float, loss: float, threshold: float) -> None:
    point = cheaper_point(POINTS, USUAL, share, loss)
    assert point is not None
    assert point.threshold == threshold


@pytest.mark.parametrize("points", [[], POINTS[:2], [POINTS[0], POINTS[5]]])
def test_without_a_cheaper_point_there_is_none(points: list[OperatingPoint]) -> None:
    assert cheaper_point(points, USUAL, 0.5, 0.05) is None


@pytest.mark.parametrize("name", ["cifar10_rnn_gate_38", "cifar10_cascade", "imagenette_rnn_gate_18"])
def test_shipped_models_have_cheaper_points_that_lose_little(name: str) -> None:
    model = shipped(name)
    usual = model.usual_point
    assert usual is not None
    assert usual.threshold == model.threshold
    assert usual.mac_share == pytest.approx(model.expected_mac_share, abs=0.02)
    cheaper = cheaper_point(model.operating_points, usual, 0.5, 0.02)
    assert cheaper is not None
    assert cheaper.mac_share < 0.9 * usual.mac_share
    assert cheaper.accuracy >= usual.accuracy - 0.02


def test_a_dense_network_has_no_usual_point() -> None:
    assert shipped("cifar10_resnet_38").usual_point is None
