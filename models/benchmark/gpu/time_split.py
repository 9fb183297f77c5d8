"""Measure the parts of a GPU engine's time: Python, the copy to pinned memory, the launch, and the kernel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from models.engines.cuda_graph.engine import CudaGraphEngine
from models.engines.persistent.engine import PersistentEngine
from models.engines.protocol import Engine, PixelEngine

STAGES = {"persistent": ("fill", "launch", "wait"), "cuda_graph": ("fill", "replay", "fetch")}
"""The methods that copy a batch, launch the work and wait for its results, by the engine's name."""
COLUMNS = ("copy", "launch", "kernel")
LEAST_RUNS = 3


@dataclass(frozen=True)
class Split:
    """The median milliseconds of a run, in parts: ``kernel`` is from the end of the launch to the results.

    ``python`` is the rest. ``thread_blocks`` is 0 for an engine without them.
    """

    network: str
    routing: str
    engine: str
    batch: int
    thread_blocks: int
    total: float
    python: float
    copy: float
    launch: float
    kernel: float


def split_time(engine: PixelEngine, pixels: NDArray[np.uint8], threshold: float, seconds: float) -> dict[str, float]:
    """Run a batch of ``pixels`` [N, H, W, 3] for about ``seconds``. Return its time in parts by ``Split``'s names."""
    thresholds = np.full(len(pixels), threshold, np.float32)
    engine.run_pixels(pixels, thresholds)  # allocates, and captures a graph
    rows: list[list[float]] = []
    end = perf_counter() + seconds
    with timed_stages(engine) as taken:
        while len(rows) < LEAST_RUNS or perf_counter() < end:
            taken.update(dict.fromkeys(COLUMNS, 0.0))
            began = perf_counter()
            engine.run_pixels(pixels, thresholds)
            rows.append([perf_counter() - began, *(taken[column] for column in COLUMNS)])
    total, *parts = (float(value) * 1e3 for value in np.median(rows, 0))
    return {"total": total, "python": total - sum(parts)} | dict(zip(COLUMNS, parts, strict=True))


@contextmanager
def timed_stages(engine: Engine) -> Iterator[dict[str, float]]:
    """Yield a mapping from ``COLUMNS`` to seconds, to which the engine's runs add within the block."""
    taken = dict.fromkeys(COLUMNS, 0.0)
    parts: list[object] = []
    if isinstance(engine, PersistentEngine):
        parts = list(engine.slots)
    elif isinstance(engine, CudaGraphEngine):
        parts = list(engine.captured.values())
    replaced = []
    for part in parts:
        for column, name in zip(COLUMNS, STAGES[engine.name], strict=True):
            stage = getattr(part, name)
            replaced.append((part, name, stage))
            setattr(part, name, timed(stage, column, taken))
    try:
        yield taken
    finally:
        for part, name, stage in replaced:
            setattr(part, name, stage)


def timed(stage: Callable[..., object], column: str, taken: dict[str, float]) -> Callable[..., object]:
    """Return a function that calls the given one and adds its seconds to ``taken``."""

    def run(*arguments: object) -> object:
        began = perf_counter()
        try:
            return stage(*arguments)
        finally:
            taken[column] += perf_counter() - began

    return run
