"""The cascade engine: each stage runs only the images of which the stages before it were unsure."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.cascade.confidence import confidence, probabilities
from models.cascade.config import Cascade
from models.engines import load_engine
from models.engines.protocol import Engine, Routed, check_batch
from models.engines.routing_switch import run_untracked
from models.macs import Mode

if TYPE_CHECKING:
    from pathlib import Path

    from models.engines.selection import OnFallback

ALWAYS, NEVER = np.float32(2), np.float32(-1)
"""The margin that escalates every image, and the one that escalates none."""


@dataclass(frozen=True)
class StageResult:
    """The run of one stage on the images with batch indices ``images`` [M].

    ``confidences`` [M] are those of the stage's output.
    """

    images: NDArray[np.intp]
    routed: Routed
    confidences: NDArray[np.float32]


@dataclass(frozen=True)
class CascadeRouted(Routed):
    """The output of a cascade for a batch of N images.

    ``logits`` [N, classes] are logarithms of the combined probabilities, up to a constant. The columns of ``executed``
    and ``probability`` are those of `Cascade.columns`: an image executes no block of a stage that it did not reach.
    """

    stages: tuple[StageResult, ...] = ()


class CascadeEngine:
    """Runs a cascade, each stage on its own engine. An image's output does not depend on the rest of its batch."""

    def __init__(self, cascade: Cascade, engines: Sequence[Engine]) -> None:
        self.cascade = cascade
        self.engines = tuple(engines)
        self.name = "+".join(dict.fromkeys(engine.name for engine in engines))
        self.device = engines[0].device

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> CascadeRouted:
        """Classify normalised images [N, 3, H, W].

        A row of ``thresholds`` [N, 2S-1] holds an image's S execute thresholds and then its S-1 margins, as
        `Cascade.thresholds` does. ``thresholds`` [N] are execute thresholds for all stages, with the cascade's own
        margins. Threshold 0 runs every block of every stage. Threshold 1 runs only the first block of the first stage.
        Raises ValueError if N is 0 or the shapes do not match.
        """
        return self._run(images, thresholds, traffic=True)

    def run_untracked(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> CascadeRouted:
        """Run images outside of the traffic. The stages' routing switches do not record their times."""
        return self._run(images, thresholds, traffic=False)

    def run_dense(self, images: NDArray[np.float32]) -> Routed:
        """Run every block of the last stage only, for comparison."""
        return run_untracked(self.engines[-1], images, np.zeros(len(images), np.float32))

    def close(self) -> None:
        """See ``Engine.close``."""
        for engine in self.engines:
            engine.close()

    def _run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32], traffic: bool) -> CascadeRouted:
        execute, margins = self.split(images, thresholds)
        alive = np.arange(len(images))
        results: list[StageResult] = []
        shares: list[NDArray[np.float32]] = []
        for number, (engine, stage) in enumerate(zip(self.engines, self.cascade.config.stages, strict=True)):
            batch = images if len(alive) == len(images) else images[alive]
            run = engine.run if traffic else lambda *batch, engine=engine: run_untracked(engine, *batch)
            routed = run(batch, execute[alive, number])
            shares.append(probabilities(routed.logits, stage.temperature))
            sure = confidence(shares[-1], self.cascade.config.measure)
            results.append(StageResult(alive, routed, sure))
            if stage.margin is None:
                break
            alive = alive[sure < margins[alive, number]]
            if not len(alive):
                break
        return self.combine(len(images), results, shares)

    def split(
        self, images: NDArray[np.float32], thresholds: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return execute thresholds [N, S] and margins [N, S-1].

        Raises ValueError as `run` does.
        """
        stages = len(self.engines)
        if thresholds.ndim == 2 and thresholds.shape[1] == 2 * stages - 1:
            check_batch(images, thresholds[:, 0])
            return thresholds[:, :stages], thresholds[:, stages:]
        check_batch(images, thresholds)
        own = np.asarray(self.cascade.thresholds[stages:], np.float32)
        margins = np.where(thresholds[:, None] <= 0, ALWAYS, np.where(thresholds[:, None] >= 1, NEVER, own))
        return np.repeat(thresholds[:, None], stages, 1), margins.astype(np.float32)

    def combine(
        self, count: int, results: Sequence[StageResult], shares: Sequence[NDArray[np.float32]]
    ) -> CascadeRouted:
        """Combine the outputs of the stages, each for the images that reached it, into those of the batch."""
        columns = self.cascade.columns
        executed = np.zeros((count, columns[-1].stop), np.bool_)
        probability = np.zeros(executed.shape, np.float32)
        total = np.zeros((count, shares[0].shape[1]), np.float32)
        reached = np.zeros((count, 1), np.float32)
        for number, (result, share, place) in enumerate(zip_longest(results, shares, columns[: len(results)])):
            first = place.start if number == 0 else place.start + 1
            if number:
                executed[result.images, place.start] = True
                probability[result.images, place.start] = 1
                if self.cascade.config.combination == "last":
                    total[result.images], reached[result.images] = 0, 0
            executed[result.images, first : place.stop] = result.routed.executed
            probability[result.images, first : place.stop] = result.routed.probability
            total[result.images] += share
            reached[result.images] += 1
        logits = np.log(np.maximum(total / reached, np.finfo(np.float32).tiny))
        return CascadeRouted(logits, executed, probability, results[0].routed.mode, tuple(results))


def executed_macs(cascade: Cascade, routed: CascadeRouted, mode: Mode | None = None) -> list[NDArray[np.int64]]:
    """Return each stage's MACs for each image of a batch [N], 0 if an image did not reach the stage.

    They are counted as if every stage had run in ``mode``.
    """
    costs = []
    for checkpoint, result in zip(cascade.stages, routed.stages, strict=False):
        macs = np.zeros(len(routed.logits), np.int64)
        macs[result.images] = checkpoint.macs.executed(result.routed.executed, mode or result.routed.mode)
        costs.append(macs)
    return costs


def load_cascade_engine(
    cascade: Cascade,
    engine: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    routing: str = "auto",
    on_fallback: "OnFallback | None" = None,
    cache: "Path | None" = None,
) -> CascadeEngine:
    """Return an engine that runs a cascade, each stage on its own engine.

    Parameters and errors are those of `load_engine`.
    """
    with ExitStack() as opened:
        engines = [
            opened.enter_context(closing(load_engine(stage, engine, device, threads, routing, on_fallback, cache)))
            for stage in cascade.stages
        ]
        opened.pop_all()
        return CascadeEngine(cascade, engines)
