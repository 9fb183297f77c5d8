"""The dense clock: what a batch would have taken with every block run, measured on the traffic itself.

The warm-up's figures come from one run after another, with warm caches. Between requests that are far apart caches go
cold, for routed and dense runs alike: set against the warm-up's clock, skipping would seem to save nothing. So now and
then a batch is run dense before it is run as usual, as cold as any.
"""

import math
from collections import deque
from statistics import median
from time import perf_counter

import numpy as np

LARGEST_SHARE = 0.02
"""Of the engine's time, at most, that samples may take."""
SAMPLES = 5
DISTURBED = 3.0
"""Times the dense figure: routing alone makes no run so long, but another process on the same core does."""


class DenseClock:
    """The time of dense batches by size: the warm-up's, corrected by the median of the last samples near that size."""

    def __init__(self, sizes: list[int], seconds: list[float]) -> None:
        """``sizes``: batch sizes that the warm-up ran, ascending from 1; ``seconds``: what each took."""
        self.sizes, self.warm = sizes, seconds
        self._samples: dict[int, deque[float]] = {size: deque(maxlen=SAMPLES) for size in sizes}
        self._factors = dict.fromkeys(sizes, 1.0)  # what the samples come to, which every request asks for
        self._last, self._ran = perf_counter(), 0.0

    def seconds(self, images: int) -> float:
        """Return the seconds that a batch of ``images`` takes when every block runs."""
        return self._warm(images) * self._factors[self._nearest(images)]

    def instead(self, images: int, seconds: float) -> float:
        """Return what a batch of ``images`` that took ``seconds`` would have taken with every block run.

        What made a run far longer than a dense one is not routing, and would have come on top of the dense run too.
        """
        dense = self.seconds(images)
        return dense + max(0.0, seconds - DISTURBED * dense)

    def due(self, images: int, interval: float) -> bool:
        """Whether a batch of ``images`` should be a sample: the last one is ``interval`` seconds ago, and the engine
        has run for long enough since then. An interval of 0 asks for none.
        """
        affordable = self._warm(images) < LARGEST_SHARE * self._ran
        return interval > 0 and affordable and perf_counter() - self._last >= interval

    def ran(self, seconds: float) -> None:
        """Note how long the engine ran for a batch as usual."""
        self._ran += seconds

    def sampled(self, images: int, seconds: float) -> None:
        """Note how long a batch of ``images`` took with every block run."""
        size = self._nearest(images)
        self._samples[size].append(seconds / self._warm(images))
        self._factors[size] = median(self._samples[size])
        self._last, self._ran = perf_counter(), 0.0

    def _warm(self, images: int) -> float:
        return float(np.interp(images, self.sizes, self.warm))

    def _nearest(self, images: int) -> int:
        return min(self.sizes, key=lambda size: abs(math.log(size / images)))
