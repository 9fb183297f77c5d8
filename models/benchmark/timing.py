"""Interleaved timing: each round runs every contender, so that noise affects all of them equally."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WARM_UP, LEAST_ROUNDS, MOST_ROUNDS = 3, 9, 400
TURN = 0.01
"""Seconds of one contender in a round."""


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
    """Return the times of all contenders, each measured once per round for about ``seconds`` in total.

    A contender's turn begins with an untimed run, which fills the caches as in a server under load. Timed runs
    follow for ``TURN`` seconds, and their mean is the result of the turn.
    """
    repeats = {name: max(1, round(TURN / run_time(run))) for name, run in contenders.items()}
    began = time.perf_counter()
    for name, run in contenders.items():
        take_turn(run, repeats[name])
    rounds = int(np.clip(seconds / (time.perf_counter() - began), LEAST_ROUNDS, MOST_ROUNDS))
    times = {name: np.empty(rounds) for name in contenders}
    order = np.random.default_rng(0)
    for number in range(rounds):
        # The order is random, since a contender may leave the processor throttled for the next one.
        for name in order.permutation(list(contenders)).tolist():
            times[name][number] = take_turn(contenders[name], repeats[name])
    return {name: Timing(seconds) for name, seconds in times.items()}


def run_time(run: Callable[[], object]) -> float:
    """Return the seconds of one run after a warm-up."""
    for _ in range(WARM_UP):
        began = time.perf_counter()
        run()
    return time.perf_counter() - began


def take_turn(run: Callable[[], object], repeats: int) -> float:
    run()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats
