"""The choice between branching and masking, with engines that advance a clock by known times."""

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
    """An engine that executes the first blocks of an image, depending on its threshold, in a given time."""

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


def make_switch(clock: Clock, overhead: float) -> RoutingSwitch:
    """All gated blocks take 10 ms in either mode. Branching takes ``overhead`` ms more per image."""
    branch = TimedEngine("branch", clock, overhead / 1000, 0.01 / GATES)
    return RoutingSwitch(branch, TimedEngine("mask", clock, 0, 0.01 / GATES), SHAPE, share=0.5)


def traffic(switch: RoutingSwitch, share: float, images: int = 6 * HORIZON_IMAGES) -> Mode:
    """Send single images that execute ``share`` of their blocks, and return the mode of the last."""
    threshold = np.full(1, 1 - share, np.float32)
    for _ in range(images):
        routed = switch.run(np.zeros((1, *SHAPE), np.float32), threshold)
    return routed.mode


def test_the_name_contains_the_engines_that_run(clock: Clock) -> None:
    branch, mask = TimedEngine("branch", clock, 0, 0, "first"), TimedEngine("mask", clock, 0, 0, "second")
    switch = RoutingSwitch(branch, mask, SHAPE)
    assert switch.name == "first+second"
    assert engine_in(switch, "branch") is branch
    assert engine_in(switch, "mask") is mask
    assert engine_in(branch, "branch") is branch
    assert make_switch(clock, 0).name == "timed"


def test_the_mode_follows_the_executed_share(clock: Clock) -> None:
    # Branching costs 3 + 10 * share, masking 10: they are equal at a share of 0.7.
    switch = make_switch(clock, overhead=3)
    assert traffic(switch, 0.2) == "branch"
    assert traffic(switch, 1.0) == "mask"
    assert traffic(switch, 0.2) == "branch"


def test_the_mode_stays_if_the_gain_is_small(clock: Clock) -> None:
    switch = make_switch(clock, overhead=3)
    assert traffic(switch, 0.1) == "branch"
    assert traffic(switch, 0.74) == "branch"
    assert traffic(switch, 1.0) == "mask"
    assert traffic(switch, 0.66) == "mask"
    assert traffic(switch, 0.1) == "branch"


def test_a_few_different_images_do_not_change_the_mode(clock: Clock) -> None:
    switch = make_switch(clock, overhead=3)
    traffic(switch, 0.2)
    assert traffic(switch, 1.0, images=3) == "branch"


def test_it_branches_if_decisions_cost_nothing(clock: Clock) -> None:
    switch = make_switch(clock, overhead=0)
    assert traffic(switch, 1.0) == "branch"
    assert traffic(switch, 0.0) == "branch"


def test_it_masks_if_branching_is_always_slower(clock: Clock) -> None:
    switch = make_switch(clock, overhead=20)
    assert traffic(switch, 0.0) == "mask"


def test_every_batch_size_has_its_own_mode(clock: Clock) -> None:
    """Masking with a high fixed cost and a low cost per image is faster only in large batches."""

    class Batching(TimedEngine):
        def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
            before = self.clock.now
            routed = super().run(images, thresholds)
            self.clock.now = before + 0.01 + 0.001 * len(images)
            return routed

    branch = TimedEngine("branch", clock, 0.001, 0.01 / GATES)
    switch = RoutingSwitch(branch, Batching("mask", clock, 0, 0), SHAPE, share=0.5)
    assert [switch.mode(size) for size in (1, 2, 3, 16, 31, 1000)] == ["branch", "branch", *["mask"] * 4]


@pytest.mark.parametrize(("device", "largest", "mode"), [("cuda:0", 512, "mask"), ("cpu", 32, "branch")])
def test_large_batches_are_measured_on_a_gpu(clock: Clock, device: str, largest: int, mode: Mode) -> None:
    """Masking that costs as much as branching on 100 images is faster above that.

    A CPU does not measure these sizes.
    """

    class Batching(TimedEngine):
        def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
            before = self.clock.now
            routed = super().run(images, thresholds)
            self.clock.now = before + 1e-3
            return routed

    branch = TimedEngine("branch", clock, 1e-5, 0, device=device)
    switch = RoutingSwitch(branch, Batching("mask", clock, 0, 0, device=device), SHAPE)
    assert max(switch.costs) == largest
    assert [switch.mode(size) for size in (32, 512, 1024)] == ["branch", mode, mode]
    assert routing_switch.sizes_for(device, (3, 224, 224)) == routing_switch.SIZES


def test_calibration_of_a_slow_network_stops_early(clock: Clock) -> None:
    branch = TimedEngine("branch", clock, 1, 1)
    switch = RoutingSwitch(branch, TimedEngine("mask", clock, 0, 1), SHAPE)
    assert list(switch.costs) == [1]
    assert switch.mode(32) == "branch"


def test_a_batch_without_images_is_refused(clock: Clock) -> None:
    with pytest.raises(ValueError, match="no image"):
        make_switch(clock, overhead=3).run(np.zeros((0, *SHAPE), np.float32), np.zeros(0, np.float32))


def test_close_closes_both_engines(clock: Clock) -> None:
    switch = make_switch(clock, overhead=3)
    engines = list(switch.engines.values())
    switch.close()
    assert all(isinstance(engine, TimedEngine) and engine.closed for engine in engines)
