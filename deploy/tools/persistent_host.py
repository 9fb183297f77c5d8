"""Measure the host's time of the persistent engine, without a GPU.

    python -m deploy.tools.persistent_host

The driver is a stand-in whose launches return immediately. So a call of ``run`` takes only the time of Python, of
copies and of the calls of the driver's functions. The tool prints the median time of a call, and what remains
allocated after a thousand calls.
"""

import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np

from models.engines.folding import fold
from models.engines.persistent.engine import PersistentEngine
from models.evaluation.forced_routes import random_network
from tests.models.engines.persistent.standin import Seen, standin

SIZES = (1, 8, 32, 256, 1024)
ROUNDS, CALLS = 200, 10


def median_microseconds(run: Callable[[], object]) -> float:
    """Return the median of the mean times of ``CALLS`` calls."""
    times = []
    for _ in range(ROUNDS):
        began = perf_counter()
        for _ in range(CALLS):
            run()
        times.append((perf_counter() - began) / CALLS)
    return float(np.median(times)) * 1e6


def kept_bytes(run: Callable[[], object], seen: Seen) -> tuple[int, int]:
    """Return the bytes that a thousand calls leave allocated in Python, and their allocations from the driver."""
    tracemalloc.start()
    run()
    before, allocations = tracemalloc.get_traced_memory()[0], seen.allocations
    for _ in range(1000):
        run()
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return kept, seen.allocations - allocations


def main() -> None:
    lines = [
        "| images | normalised, us | pixels, us | bytes kept after 1,000 calls | allocations from the driver |",
        "|---|---|---|---|---|",
    ]
    with standin(computes=False) as (seen, _):
        engine = PersistentEngine(fold(random_network("cifar10_rnn_gate_38")), "cuda:0")
        for size in SIZES:
            images = np.zeros((size, 3, 32, 32), np.float32)
            pixels = np.zeros((size, 32, 32, 3), np.uint8)
            thresholds = np.full(size, 0.5, np.float32)
            times = [
                median_microseconds(partial(engine.run, images, thresholds)),
                median_microseconds(partial(engine.run_pixels, pixels, thresholds)),
            ]
            kept = kept_bytes(partial(engine.run_pixels, pixels, thresholds), seen)
            lines.append(f"| {size:,} | {times[0]:.1f} | {times[1]:.1f} | {kept[0]:,} | {kept[1]} |")
        engine.close()
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
