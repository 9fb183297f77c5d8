"""Wrappers of a training run's steps: without a progress bar, or until the run is killed."""

from collections.abc import Iterator


class Killed(Exception):
    """The run was killed."""


class KilledAfter:
    """Kills the run after ``steps`` steps, over all epochs. ``taken`` is the number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.taken = steps, 0

    def __call__(self, steps: Iterator[int]) -> Iterator[int]:
        for step in steps:
            if self.taken == self.steps:
                raise Killed
            self.taken += 1
            yield step


def quiet(steps: Iterator[int]) -> Iterator[int]:
    return steps
