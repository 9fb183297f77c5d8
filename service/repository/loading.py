"""Load one version of a model and verify it."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError
from models.remote.mirror import default_cache
from service.inference.dense_clock import DenseClock
from service.repository.loaded_cascade import LoadedCascade
from service.repository.loaded_model import LoadedModel, timed
from service.settings import EngineOptions

if TYPE_CHECKING:
    from models.engines.protocol import Engine
    from models.engines.selection import OnFallback
    from models.macs import Mode

EngineType = TypeVar("EngineType", bound="Engine")
SLOW_S = 0.25
"""Seconds of a dense batch."""


class LoadError(UserError):
    """A version cannot be loaded. The message says why and what to do."""


def load_version(folder: Path, options: EngineOptions, max_batch_size: int) -> LoadedModel:
    """Load the checkpoint or cascade in ``folder``, verify its output and warm it up.

    It takes seconds and imports torch, so call it in a thread. Raises LoadError.
    """
    from models.checkpoint import CheckpointError

    fallbacks: list[str] = []

    def note(engine: str, _: str) -> None:
        # Branching and masking may fall back from the same engine, with different figures in the reasons.
        if engine not in fallbacks:
            fallbacks.append(engine)

    try:
        model = open_version(folder, options, note)
    except CheckpointError as error:
        raise LoadError(str(error)) from error
    except Exception as error:
        raise LoadError(f"{folder} cannot run on {options.engine}, {options.device}: {error}") from error
    try:
        warm_up(model, max_batch_size)
    except Exception:
        model.close()
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
    engine, *others = load_on_devices(partial(load_engine, checkpoint), options, on_fallback)
    return LoadedModel(checkpoint, engine, "branch", DenseClock([1], [0.0]), tuple(others))


def load_cascade(folder: Path, options: EngineOptions, on_fallback: "OnFallback | None") -> LoadedCascade:
    """Return the cascade in ``folder`` on its engines, not warm yet."""
    from models.cascade.config import read_cascade
    from models.cascade.engine import load_cascade_engine

    cascade = read_cascade(folder)
    engine, *others = load_on_devices(partial(load_cascade_engine, cascade), options, on_fallback)
    return LoadedCascade(cascade, engine, "branch", DenseClock([1], [0.0]), tuple(others))


def load_on_devices(
    load: "Callable[..., EngineType]", options: EngineOptions, on_fallback: "OnFallback | None"
) -> "list[EngineType]":
    """Return an engine for each device of the options. Those on the CPU share its cores."""
    from models.engines.factory import closing_on_error
    from models.engines.selection import find_devices
    from models.machine import available_cpus

    devices = find_devices(options.device, options.engine)
    # A device may be named twice, and its engines are measured beside each other.
    cache = engine_cache() if len(devices) == 1 else None
    threads = options.threads
    if threads is None and devices.count("cpu") > 1:
        threads = max(1, available_cpus() // devices.count("cpu"))
    with closing_on_error() as opened:
        return [
            opened.enter_context(
                closing(load(options.engine, device, threads, options.routing, on_fallback=on_fallback, cache=cache))
            )
            for device in devices
        ]


def engine_cache() -> Path | None:
    """Return the folder in which the choice of engines is kept, or None if this user has no home."""
    try:
        return default_cache() / "engines"
    except RuntimeError:
        return None


def warm_up(model: LoadedModel, max_batch_size: int) -> None:
    """Run, check and time batches of 1, 2, 4, … ``max_batch_size`` images.

    They run dense, at the model's threshold, and with every block skipped. On a CPU, larger batches than the first that
    takes `SLOW_S` are not run, because their time is proportional to their size.

    Sets the model's mode and dense clock. Raises LoadError if the output has the wrong shape or is not finite.
    """
    sizes = [1]
    while sizes[-1] < max_batch_size:
        sizes.append(min(2 * sizes[-1], max_batch_size))
    # The first device is the last in the loop: its times are those of the dense clock.
    for device in reversed(range(len(model.engines))):
        mode, times = warm_up_device(model, device, sizes)
    model.mode, model.clock = mode, DenseClock(sizes, times)


def warm_up_device(model: LoadedModel, device: int, sizes: list[int]) -> "tuple[Mode, list[float]]":
    """Warm up the engine of one device. Return the mode of the last batch and the dense seconds of each size."""
    images = np.random.default_rng(0).standard_normal((sizes[-1], *model.shape)).astype(np.float32)
    engine = model.engines[device]
    times: list[float] = []
    thresholds = (1.0, model.threshold, 0.0) if model.gated else (model.threshold,)
    for size in sizes:
        if times and times[-1] > SLOW_S and engine.device == "cpu":
            times.append(times[-1] * size / sizes[len(times) - 1])
            continue
        for threshold in thresholds:
            routed, _ = timed(engine, images[:size], threshold)
            verify(model, routed.logits, (size, len(model.labels)))
            verify(model, routed.probability, (size, model.blocks - 1))
            disobeys = (threshold == 0 and not routed.executed.all()) or (threshold == 1 and routed.executed.any())
            if model.gated and disobeys:
                raise LoadError(f"{model}: the engine {engine.name} does not apply the execute threshold")
        # The first run of a size also allocates buffers and compiles kernels, so it takes longer.
        seconds = model.run_dense(images[:size], device)
        times.append(seconds if seconds > SLOW_S else model.run_dense(images[:size], device))
    return routed.mode, times


def verify(model: LoadedModel, values: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    """Raise LoadError if an engine's output has the wrong shape or is not finite."""
    if values.shape != shape or not np.isfinite(values).all():
        raise LoadError(
            f"{model.checkpoint.folder}: the output has shape {values.shape} instead of {shape}, or is not finite; the "
            "checkpoint is damaged or its training failed"
        )
