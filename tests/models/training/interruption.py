"""Ways to watch a training run's steps: quietly, or until it is killed."""

from collections.abc import Iterator


class Killed(Exception):
    """The run was killed."""


class KilledAfter:
    """Lets ``steps`` steps pass, over all epochs, and kills the run before the next; counts them in ``taken``."""

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
