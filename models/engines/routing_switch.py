"""Choose branching or masking: the faster one at the traffic's share of executed blocks.

Both give the same output. Branching skips blocks, but each decision takes time. Masking computes every block, and
decisions take no time. Which one is faster depends on the machine, the batch size and the executed share. So both are
measured when a model is loaded.
"""

import math
import time
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from models.engines.protocol import Engine, Routed, check_batch
from models.macs import Mode

SHARES = (0.0, 0.5, 1.0)
SIZES = (1, 2, 4, 8, 16, 32)
LARGE_SIZES = (128, 512)
"""Sizes that are also measured on a GPU, because there the cost of a decision and the work of a block grow differently.
"""
LARGE_PIXELS = 512 * 32 * 32
"""The most pixels of a batch of one of ``LARGE_SIZES``."""
RUNS = 5
CALIBRATION_LIMIT_S = 1.0
MARGIN = 0.05
HORIZON_IMAGES = 256


@dataclass
class Costs:
    """The measured seconds of one batch size: branching at each of ``SHARES``, masking at any share.

    ``mode`` is the mode in use.
    """

    branch: tuple[float, ...]
    mask: float
    mode: Mode

    def choose(self, share: float) -> Mode:
        """Return the mode for an executed ``share``. It changes only for a gain above ``MARGIN``."""
        seconds = {"branch": float(np.interp(share, SHARES, self.branch)), "mask": self.mask}
        other: Mode = "mask" if self.mode == "branch" else "branch"
        if seconds[other] < (1 - MARGIN) * seconds[self.mode]:
            self.mode = other
        return self.mode


@runtime_checkable
class Learning(Protocol):
    """An engine that adapts to the images of its requests."""

    def run_untracked(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run images outside of the traffic: as ``run``, but the engine does not record them."""
        ...


class RoutingSwitch:
    """An engine that consists of two engines, ``branch`` and ``mask``, for the same network.

    ``share`` is the share of gated blocks that recent images executed: a moving average over about ``HORIZON_IMAGES``
    images.
    """

    def __init__(
        self,
        branch: Engine,
        mask: Engine,
        shape: tuple[int, int, int],
        share: float = 0.5,
        costs: dict[int, Costs] | None = None,
    ) -> None:
        """Measure both engines on images of ``shape`` (3, H, W), unless their ``costs`` were measured before.

        ``share`` is the expected executed share.
        """
        self.engines: dict[Mode, Engine] = {"branch": branch, "mask": mask}
        self.name = branch.name if branch.name == mask.name else f"{branch.name}+{mask.name}"
        self.device = branch.device
        self.share = share
        self.costs = costs or calibrate(branch, mask, shape)

    @property
    def winners(self) -> set[Mode]:
        """The modes that are faster for some batch size and executed share."""
        pairs = [(branch, cost.mask) for cost in self.costs.values() for branch in cost.branch]
        return {"mask" if mask < branch else "branch" for branch, mask in pairs}

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run a batch, as ``Engine.run`` does. The output's ``mode`` is that of the engine that ran."""
        routed = self.run_untracked(images, thresholds)
        memory = math.exp(-len(images) / HORIZON_IMAGES)
        self.share = memory * self.share + (1 - memory) * float(routed.executed.mean())
        return routed

    def run_untracked(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run images outside of the traffic: ``share`` does not change."""
        check_batch(images, thresholds)
        return self.engines[self.mode(len(images))].run(images, thresholds)

    def mode(self, size: int) -> Mode:
        """Return the mode in which a batch of ``size`` images would run now."""
        nearest = min(self.costs, key=lambda measured: abs(math.log(measured / size)))
        return self.costs[nearest].choose(self.share)

    def close(self) -> None:
        """Close both engines."""
        for engine in self.engines.values():
            engine.close()


def run_untracked(engine: Engine, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
    """Run an engine on images outside of the traffic. A switch does not record them."""
    return engine.run_untracked(images, thresholds) if isinstance(engine, Learning) else engine.run(images, thresholds)


def engine_in(engine: Engine, mode: Mode) -> Engine:
    """Return the engine that runs a batch in ``mode``: an engine of the switch, or ``engine`` itself."""
    return engine.engines[mode] if isinstance(engine, RoutingSwitch) else engine


def calibrate(branch: Engine, mask: Engine, shape: tuple[int, int, int]) -> dict[int, Costs]:
    """Return the costs by batch size, up to the size whose measurement exceeds ``CALIBRATION_LIMIT_S``."""
    costs: dict[int, Costs] = {}
    generator = np.random.default_rng(0)
    for size in sizes_for(branch.device, shape):
        images = generator.standard_normal((size, *shape), np.float32)
        # Images at threshold 0 execute every block and images at threshold 1 none, so a mixture forces a share. Batch
        # size 1 has no mixture. There, half of the blocks are assumed to take the mean of the two times.
        branching = [median_seconds(branch, images, forced_thresholds(share, size)) for share in SHARES]
        if size == 1:
            branching[1] = (branching[0] + branching[2]) / 2
        masking = median_seconds(mask, images, forced_thresholds(0.5, size))
        costs[size] = Costs(tuple(branching), masking, "branch")
        if 2 * RUNS * (sum(branching) + masking) > CALIBRATION_LIMIT_S:
            break
    return costs


def sizes_for(device: str, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the batch sizes to measure on a device with images of ``shape`` (3, H, W)."""
    if device == "cpu":
        return SIZES
    return SIZES + tuple(size for size in LARGE_SIZES if size * shape[1] * shape[2] <= LARGE_PIXELS)


def forced_thresholds(share: float, size: int) -> NDArray[np.float32]:
    """Return thresholds [size] with which a ``share`` of the images execute every block and the others none."""
    executing = np.arange(size) < round(share * size)
    return np.where(executing, np.float32(0), np.float32(1)).astype(np.float32)


def median_seconds(engine: Engine, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> float:
    """Return the median time of ``RUNS`` runs after one warm-up run."""
    engine.run(images, thresholds)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        engine.run(images, thresholds)
        times.append(time.perf_counter() - start)
    return float(np.median(times))
