"""The choice between branching and masking. Engines with a clock of their own make its costs known."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from models.engines import routing_switch
from models.engines.protocol import Routed
from models.engines.routing_switch import HORIZON_IMAGES, RoutingSwitch, engine_in
from models.macs import Mode

SHAPE = (3, 4, 4)
GATES = 100


@dataclass
class Clock:
    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class TimedEngine:
    """Executes the first gates of an image, as many as its threshold leaves; a run takes what it is told to."""

    mode: Mode
    clock: Clock
    fixed: float
    per_block: float
    name: str = "timed"
    device: str = "cpu"
    closed: bool = False

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        count = len(images)
        executed = np.arange(GATES) < np.round((1 - thresholds[:, None]) * GATES)
        blocks = executed.sum() if self.mode == "branch" else count * GATES
        self.clock.now += count * self.fixed + self.per_block * blocks
        return Routed(np.zeros((count, 2), np.float32), executed, np.ones(executed.shape, np.float32), self.mode)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(routing_switch, "time", clock)
    return clock


def make_switch(clock: Clock, detour: float) -> RoutingSwitch:
    """All gated blocks take 10 ms in either mode; branching takes ``detour`` ms more for an image."""
    branch = TimedEngine("branch", clock, detour / 1000, 0.01 / GATES)
    return RoutingSwitch(branch, TimedEngine("mask", clock, 0, 0.01 / GATES), SHAPE, share=0.5)


def traffic(switch: RoutingSwitch, share: float, images: int = 6 * HORIZON_IMAGES) -> Mode:
    """Send single images that execute ``share`` of their blocks; return the mode of the last."""
    threshold = np.full(1, 1 - share, np.float32)
    for _ in range(images):
        routed = switch.run(np.zeros((1, *SHAPE), np.float32), threshold)
    return routed.mode


def test_its_name_and_that_of_an_answer_tell_which_engine_runs(clock: Clock) -> None:
    branch, mask = TimedEngine("branch", clock, 0, 0, "quick"), TimedEngine("mask", clock, 0, 0, "steady")
    switch = RoutingSwitch(branch, mask, SHAPE)
    assert switch.name == "quick+steady"
    assert engine_in(switch, "branch") is branch
    assert engine_in(switch, "mask") is mask
    assert engine_in(branch, "branch") is branch
    assert make_switch(clock, 0).name == "timed"


def test_follows_what_traffic_executes(clock: Clock) -> None:
    # Branching costs 3 + 10 * share, masking 10: they are equal at a share of 0.7.
    switch = make_switch(clock, detour=3)
    assert traffic(switch, 0.2) == "branch"
    assert traffic(switch, 1.0) == "mask"
    assert traffic(switch, 0.2) == "branch"


def test_stays_where_the_gain_is_small(clock: Clock) -> None:
    switch = make_switch(clock, detour=3)
    assert traffic(switch, 0.1) == "branch"
    assert traffic(switch, 0.74) == "branch"
    assert traffic(switch, 1.0) == "mask"
    assert traffic(switch, 0.66) == "mask"
    assert traffic(switch, 0.1) == "branch"


def test_one_odd_image_changes_nothing(clock: Clock) -> None:
    switch = make_switch(clock, detour=3)
    traffic(switch, 0.2)
    assert traffic(switch, 1.0, images=3) == "branch"


def test_branches_where_deciding_is_free(clock: Clock) -> None:
    switch = make_switch(clock, detour=0)
    assert traffic(switch, 1.0) == "branch"
    assert traffic(switch, 0.0) == "branch"


def test_masks_where_branching_never_pays(clock: Clock) -> None:
    switch = make_switch(clock, detour=20)
    assert traffic(switch, 0.0) == "mask"


def test_every_batch_size_has_its_own_mode(clock: Clock) -> None:
    """Masking that starts slowly and then costs little: it pays in large batches only."""

    class Batching(TimedEngine):
        def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
            before = self.clock.now
            routed = super().run(images, thresholds)
            self.clock.now = before + 0.01 + 0.001 * len(images)
            return routed

    branch = TimedEngine("branch", clock, 0.001, 0.01 / GATES)
    switch = RoutingSwitch(branch, Batching("mask", clock, 0, 0), SHAPE, share=0.5)
    assert [switch.mode(size) for size in (1, 2, 3, 16, 31, 1000)] == ["branch", "branch", *["mask"] * 4]


def test_slow_networks_are_not_measured_for_ever(clock: Clock) -> None:
    branch = TimedEngine("branch", clock, 1, 1)
    switch = RoutingSwitch(branch, TimedEngine("mask", clock, 0, 1), SHAPE)
    assert list(switch.costs) == [1]
    assert switch.mode(32) == "branch"


def test_a_batch_without_images_is_refused(clock: Clock) -> None:
    with pytest.raises(ValueError, match="no image"):
        make_switch(clock, detour=3).run(np.zeros((0, *SHAPE), np.float32), np.zeros(0, np.float32))


def test_closes_both(clock: Clock) -> None:
    switch = make_switch(clock, detour=3)
    engines = list(switch.engines.values())
    switch.close()
    assert all(isinstance(engine, TimedEngine) and engine.closed for engine in engines)
