"""One version of a model, made ready to serve: read, verified, warmed up and timed."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.inference.dense_clock import DenseClock
from service.settings import EngineOptions

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.engines.protocol import Engine, Routed
    from models.macs import Mode


class LoadError(Exception):
    """A version can't be served; the message says why and what to do."""


@dataclass(eq=False)
class Served:
    """One version of a model, loaded and warm."""

    checkpoint: "Checkpoint"
    engine: "Engine"
    mode: "Mode"  # of the last batch
    clock: DenseClock
    fallbacks: list[str] = field(default_factory=list)  # engines that auto does without; the log says why
    leases: int = field(default=0, init=False)  # requests that still need it
    retired: bool = field(default=False, init=False)  # no new request gets it
    closed: bool = field(default=False, init=False)  # its engine is closed, or about to be

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def version(self) -> int:
        return self.checkpoint.version

    @property
    def shape(self) -> tuple[int, int, int]:
        spec = self.checkpoint.config.input
        return 3, spec.height, spec.width

    def engine_in(self, mode: "Mode") -> str:
        """Return the name of the engine that runs a batch in ``mode``: a switch has two."""
        from models.engines.routing_switch import engine_in

        return engine_in(self.engine, mode).name

    def probe(self) -> None:
        """Run a blank image; raises what the engine raises."""
        self.run_dense(np.zeros((1, *self.shape), np.float32))

    def run_dense(self, images: NDArray[np.float32]) -> float:
        """Run every block for ``images`` [N, 3, H, W] and return the seconds it took; nobody gets the answers."""
        return timed(self.engine, images, 0.0)[1]

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


def load_version(folder: Path, options: EngineOptions, max_batch_size: int) -> Served:
    """Load the checkpoint in ``folder``, verify what it answers and warm it up.

    Takes seconds, and imports torch; call it in a thread. Raises LoadError.
    """
    from models.checkpoint import CheckpointError, read_checkpoint
    from models.engines import load_engine

    try:
        checkpoint = read_checkpoint(folder)
    except CheckpointError as error:
        raise LoadError(str(error)) from error
    fallbacks: list[str] = []
    try:
        engine = load_engine(
            checkpoint,
            options.engine,
            options.device,
            options.threads,
            options.routing,
            # Branching and masking may do without the same one, for reasons that differ in their figures.
            on_fallback=lambda name, _: fallbacks.append(name) if name not in fallbacks else None,
        )
    except Exception as error:
        raise LoadError(f"{folder} can't run on {options.engine}, {options.device}: {error}") from error
    try:
        return replace(warm_up(checkpoint, engine, max_batch_size), fallbacks=fallbacks)
    except Exception:
        engine.close()
        raise


def warm_up(checkpoint: "Checkpoint", engine: "Engine", max_batch_size: int) -> Served:
    """Run batches of 1, 2, 4, … ``max_batch_size`` images, dense and skipping all; check and time them."""
    config, decisions = checkpoint.config, len(checkpoint.macs.blocks) - 1
    sizes = [1]
    while sizes[-1] < max_batch_size:
        sizes.append(min(2 * sizes[-1], max_batch_size))
    noise = np.random.default_rng(0).standard_normal((max_batch_size, 3, config.input.height, config.input.width))
    images = noise.astype(np.float32)
    times = []
    for size in sizes:
        for threshold in (1.0, config.execute_threshold, 0.0):
            routed, seconds = timed(engine, images[:size], threshold)
            verify(checkpoint, routed.logits, (size, len(config.labels)))
            verify(checkpoint, routed.probability, (size, decisions))
            obeys = {0.0: routed.executed.all(), 1.0: not routed.executed.any()}
            if checkpoint.macs.gates and not obeys.get(threshold, True):
                raise LoadError(f"{checkpoint.folder}: the engine {engine.name} does not obey the execute threshold")
        # The first run of a size also pays for buffers and kernels, which matters where a run is short.
        times.append(seconds if seconds > 0.25 else timed(engine, images[:size], 0.0)[1])
    return Served(checkpoint, engine, routed.mode, DenseClock(sizes, times))


def timed(engine: "Engine", images: NDArray[np.float32], threshold: float) -> "tuple[Routed, float]":
    """Run images that are no traffic: a switch between branching and masking does not learn from them."""
    from models.engines.routing_switch import rehearse

    start = perf_counter()
    routed = rehearse(engine, images, np.full(len(images), threshold, np.float32))
    return routed, perf_counter() - start


def verify(checkpoint: "Checkpoint", values: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if values.shape != shape or not np.isfinite(values).all():
        raise LoadError(
            f"{checkpoint.folder} answers numbers of shape {values.shape} where {shape} is right, or not "
            "finite ones; it was damaged or its training failed"
        )
