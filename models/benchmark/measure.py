"""Interleaved timing of contenders: each round runs every one, so that a machine's moods strike all alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WARM_UP, LEAST_ROUNDS, MOST_ROUNDS = 3, 7, 400


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender's rounds, in the order in which they ran."""

    seconds: NDArray[np.float64]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def share_of(self, other: "Timing") -> tuple[float, float, float]:
        """Return the median and the quartiles of this contender's time over the other's, round by round."""
        middle, low, high = np.percentile(self.seconds / other.seconds, (50, 25, 75))
        return float(middle), float(low), float(high)


def interleave(contenders: dict[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    """Time each contender once a round, for about ``seconds`` in all, after a warm-up of all."""
    began = time.perf_counter()
    for _ in range(WARM_UP):
        for run in contenders.values():
            run()
    one_round = (time.perf_counter() - began) / WARM_UP
    rounds = int(np.clip(seconds / one_round, LEAST_ROUNDS, MOST_ROUNDS))
    times = np.empty((len(contenders), rounds))
    order = np.random.default_rng(0)
    for column in range(rounds):
        # A contender's neighbours warm or spoil its caches: no two rounds have the same order.
        for row in order.permutation(len(contenders)):
            run = list(contenders.values())[row]
            start = time.perf_counter()
            run()
            times[row, column] = time.perf_counter() - start
    return {name: Timing(times[row]) for row, name in enumerate(contenders)}
