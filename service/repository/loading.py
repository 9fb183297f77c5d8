"""One version of a model, made ready to serve: read, verified, warmed up and timed."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.inference.dense_clock import DenseClock
from service.repository.loaded_model import LoadedModel, timed
from service.settings import EngineOptions

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.engines.protocol import Engine


class LoadError(Exception):
    """A version can't be served; the message says why and what to do."""


def load_version(folder: Path, options: EngineOptions, max_batch_size: int) -> LoadedModel:
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


def warm_up(checkpoint: "Checkpoint", engine: "Engine", max_batch_size: int) -> LoadedModel:
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
    return LoadedModel(checkpoint, engine, routed.mode, DenseClock(sizes, times))


def verify(checkpoint: "Checkpoint", values: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if values.shape != shape or not np.isfinite(values).all():
        raise LoadError(
            f"{checkpoint.folder} answers numbers of shape {values.shape} where {shape} is right, or not "
            "finite ones; it was damaged or its training failed"
        )
