"""Load one version of a model and verify it."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError
from service.inference.dense_clock import DenseClock
from service.repository.loaded_cascade import LoadedCascade
from service.repository.loaded_model import LoadedModel, timed
from service.settings import EngineOptions

if TYPE_CHECKING:
    from models.engines.selection import OnFallback


class LoadError(UserError):
    """A version can't be loaded; the message says why and what to do."""


def load_version(folder: Path, options: EngineOptions, max_batch_size: int) -> LoadedModel:
    """Load the checkpoint or cascade in ``folder``, verify its output and warm it up.

    It takes seconds and imports torch, so call it in a thread. Raises LoadError.
    """
    from models.checkpoint import CheckpointError

    fallbacks: list[str] = []

    def note(engine: str, _: str) -> None:
        # Branching and masking may fall back from the same engine for reasons that differ in their figures.
        if engine not in fallbacks:
            fallbacks.append(engine)

    try:
        model = open_version(folder, options, note)
    except CheckpointError as error:
        raise LoadError(str(error)) from error
    except Exception as error:
        raise LoadError(f"{folder} can't run on {options.engine}, {options.device}: {error}") from error
    try:
        warm_up(model, max_batch_size)
    except Exception:
        model.engine.close()
        raise
    model.fallbacks = fallbacks
    return model


def open_version(folder: Path, options: EngineOptions, on_fallback: "OnFallback | None" = None) -> LoadedModel:
    """Return the checkpoint or cascade in ``folder``, not warm yet.

    Raises CheckpointError or EngineError.
    """
    from models.checkpoint import is_cascade

    return (load_cascade if is_cascade(folder) else load_checkpoint)(folder, options, on_fallback)


def load_checkpoint(folder: Path, options: EngineOptions, on_fallback: "OnFallback | None") -> LoadedModel:
    """Return the checkpoint in ``folder`` on its engine, not warm yet."""
    from models.checkpoint import read_checkpoint
    from models.engines import load_engine

    checkpoint = read_checkpoint(folder)
    engine = load_engine(
        checkpoint, options.engine, options.device, options.threads, options.routing, on_fallback=on_fallback
    )
    return LoadedModel(checkpoint, engine, "branch", DenseClock([1], [0.0]))


def load_cascade(folder: Path, options: EngineOptions, on_fallback: "OnFallback | None") -> LoadedCascade:
    """Return the cascade in ``folder`` on its engines, not warm yet."""
    from models.cascade.config import read_cascade
    from models.cascade.engine import load_cascade_engine

    cascade = read_cascade(folder)
    engine = load_cascade_engine(
        cascade, options.engine, options.device, options.threads, options.routing, on_fallback=on_fallback
    )
    return LoadedCascade(cascade, engine, "branch", DenseClock([1], [0.0]))


def warm_up(model: LoadedModel, max_batch_size: int) -> None:
    """Run batches of 1, 2, 4, … ``max_batch_size`` images, dense and with every block skipped; check and time them.

    Sets the model's mode and dense clock. Raises LoadError if the output has the wrong shape or is not finite.
    """
    sizes = [1]
    while sizes[-1] < max_batch_size:
        sizes.append(min(2 * sizes[-1], max_batch_size))
    images = np.random.default_rng(0).standard_normal((max_batch_size, *model.shape)).astype(np.float32)
    times = []
    for size in sizes:
        for threshold in (1.0, model.threshold, 0.0):
            routed, _ = timed(model.engine, images[:size], threshold)
            verify(model, routed.logits, (size, len(model.labels)))
            verify(model, routed.probability, (size, model.blocks - 1))
            disobeys = (threshold == 0 and not routed.executed.all()) or (threshold == 1 and routed.executed.any())
            if model.gated and disobeys:
                raise LoadError(f"{model}: the engine {model.engine.name} does not obey the execute threshold")
        # The first run of a size also allocates buffers and compiles kernels, which takes longer than a short run.
        seconds = model.run_dense(images[:size])
        times.append(seconds if seconds > 0.25 else model.run_dense(images[:size]))
    model.mode, model.clock = routed.mode, DenseClock(sizes, times)


def verify(model: LoadedModel, values: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    """Raise LoadError if an engine's output has the wrong shape or is not finite."""
    if values.shape != shape or not np.isfinite(values).all():
        raise LoadError(
            f"{model.checkpoint.folder}: the output has shape {values.shape} instead of {shape}, or is not finite; the "
            "checkpoint is damaged or its training failed"
        )
