"""The profitability switch: branching or masking, whichever is faster at the routing that traffic shows.

Both answer the same. Branching saves the skipped blocks and pays for deciding where to go; masking runs every
block and pays for no detour. Which is faster depends on the machine, the batch size and the share of blocks
that the images execute, so it is measured where it is served.
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
RUNS = 5
PATIENCE_S = 1.0
MARGIN = 0.05
HORIZON_IMAGES = 256


@dataclass
class Costs:
    """Seconds of one batch size: branching at each of ``SHARES``, masking at any; and the mode in use."""

    branch: tuple[float, ...]
    mask: float
    mode: Mode

    def choose(self, share: float) -> Mode:
        """Return the mode to use at ``share`` executed; it changes only for a gain above ``MARGIN``."""
        seconds = {"branch": float(np.interp(share, SHARES, self.branch)), "mask": self.mask}
        other: Mode = "mask" if self.mode == "branch" else "branch"
        if seconds[other] < (1 - MARGIN) * seconds[self.mode]:
            self.mode = other
        return self.mode


@runtime_checkable
class Rehearsing(Protocol):
    """An engine that learns from what it runs, unless it only rehearses."""

    def rehearse(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run images that are no traffic: as ``run``, but the engine learns nothing from them."""
        ...


class RoutingSwitch:
    """An engine of two: ``branch`` and ``mask`` run the same network.

    ``share`` is the share of gated blocks that recent images executed, a mean with a memory of about
    ``HORIZON_IMAGES`` images.
    """

    def __init__(self, branch: Engine, mask: Engine, shape: tuple[int, int, int], share: float = 0.5) -> None:
        """Measure both engines on images of ``shape`` [3, H, W]; ``share`` is what to expect at first."""
        self.engines: dict[Mode, Engine] = {"branch": branch, "mask": mask}
        self.name = branch.name if branch.name == mask.name else f"{branch.name}+{mask.name}"
        self.device = branch.device
        self.share = share
        self.costs = calibrate(branch, mask, shape)

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """See ``Engine.run``; ``mode`` of the answer tells which engine ran."""
        routed = self.rehearse(images, thresholds)
        memory = math.exp(-len(images) / HORIZON_IMAGES)
        self.share = memory * self.share + (1 - memory) * float(routed.executed.mean())
        return routed

    def rehearse(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run images that are no traffic: as ``run``, but ``share`` stays what it is."""
        check_batch(images, thresholds)
        return self.engines[self.mode(len(images))].run(images, thresholds)

    def mode(self, size: int) -> Mode:
        """Return the mode that a batch of ``size`` images will run in, now."""
        nearest = min(self.costs, key=lambda measured: abs(math.log(measured / size)))
        return self.costs[nearest].choose(self.share)

    def close(self) -> None:
        """See ``Engine.close``."""
        for engine in self.engines.values():
            engine.close()


def rehearse(engine: Engine, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
    """Run an engine on images that are no traffic, so that a switch among engines does not learn from them."""
    return engine.rehearse(images, thresholds) if isinstance(engine, Rehearsing) else engine.run(images, thresholds)


def engine_in(engine: Engine, mode: Mode) -> Engine:
    """Return the engine that runs a batch in ``mode``: of a switch, one of its two."""
    return engine.engines[mode] if isinstance(engine, RoutingSwitch) else engine


def calibrate(branch: Engine, mask: Engine, shape: tuple[int, int, int]) -> dict[int, Costs]:
    """Return the costs by batch size. Sizes whose batches take longer than ``PATIENCE_S`` are left out."""
    costs: dict[int, Costs] = {}
    generator = np.random.default_rng(0)
    for size in SIZES:
        images = generator.standard_normal((size, *shape), np.float32)
        # Threshold 0 executes every block of an image and 1 none, so mixtures force a share. At batch 1 there
        # is no mixture: an image of half its blocks costs the mean of the two.
        branching = [seconds(branch, images, force(share, size)) for share in SHARES]
        if size == 1:
            branching[1] = (branching[0] + branching[2]) / 2
        masking = seconds(mask, images, force(0.5, size))
        costs[size] = Costs(tuple(branching), masking, "branch")
        if 2 * RUNS * (sum(branching) + masking) > PATIENCE_S:
            break
    return costs


def force(share: float, size: int) -> NDArray[np.float32]:
    """Return thresholds [size] at which ``share`` of the images execute every block and the others none."""
    executing = np.arange(size) < round(share * size)
    return np.where(executing, np.float32(0), np.float32(1)).astype(np.float32)


def seconds(engine: Engine, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> float:
    """Return the median time of a run, warmed up."""
    engine.run(images, thresholds)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        engine.run(images, thresholds)
        times.append(time.perf_counter() - start)
    return float(np.median(times))
