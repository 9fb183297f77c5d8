"""The dense clock: the time of a batch with every block executed, measured on the traffic.

The warm-up measures consecutive runs with warm caches. If requests are rare, caches are cold, for routed and dense runs
alike. Compared with the warm-up, skipping would then seem to save nothing. So sometimes a batch also runs dense, with
the same cold caches, before it runs as usual.
"""

import math
from collections import deque
from statistics import median
from time import perf_counter

import numpy as np

LARGEST_SHARE = 0.02
"""The largest share of the engine's time that samples may take."""
SAMPLES = 5
DISTURBED = 3.0
"""A run longer than this multiple of the dense time was disturbed, for instance by another process."""


class DenseClock:
    """The time of dense batches by size, from the warm-up and the median of the last samples of each size."""

    def __init__(self, sizes: list[int], seconds: list[float]) -> None:
        """Start from the warm-up's ``seconds`` of a dense batch of each of ``sizes``, which ascend from 1."""
        self.sizes, self.warm = sizes, seconds
        self._samples: dict[int, deque[float]] = {size: deque(maxlen=SAMPLES) for size in sizes}
        self._factors = dict.fromkeys(sizes, 1.0)  # from the samples, precomputed since every request reads it
        self._last, self._ran = perf_counter(), 0.0

    def seconds(self, count: int) -> float:
        """Return the seconds of a batch of ``count`` images if every block runs."""
        return self._warm(count) * self._factors[self._nearest(count)]

    def instead(self, count: int, seconds: float) -> float:
        """Return the seconds that a batch of ``count`` images, which took ``seconds``, would have taken dense.

        A disturbance makes a run far longer than a dense one. It would have delayed the dense run too.
        """
        dense = self.seconds(count)
        return dense + max(0.0, seconds - DISTURBED * dense)

    def due(self, count: int, interval: float) -> bool:
        """Return whether a batch of ``count`` images should be a sample.

        The last sample must be ``interval`` seconds ago, and the engine must have run long enough since then. An
        interval of 0 disables samples.
        """
        affordable = self._warm(count) < LARGEST_SHARE * self._ran
        return interval > 0 and affordable and perf_counter() - self._last >= interval

    def ran(self, seconds: float) -> None:
        """Add the seconds of a batch that ran as usual."""
        self._ran += seconds

    def sampled(self, count: int, seconds: float) -> None:
        """Add a sample: the ``seconds`` of a batch of ``count`` images with every block executed."""
        size = self._nearest(count)
        self._samples[size].append(seconds / self._warm(count))
        self._factors[size] = median(self._samples[size])
        self._last, self._ran = perf_counter(), 0.0

    def _warm(self, count: int) -> float:
        return float(np.interp(count, self.sizes, self.warm))

    def _nearest(self, count: int) -> int:
        return min(self.sizes, key=lambda size: abs(math.log(size / count)))
