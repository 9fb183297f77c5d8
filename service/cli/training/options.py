"""Options and functions that the training verbs share."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import length_hint
from typing import Literal

from pydantic import Field

from models.errors import needs_extra
from service.settings import Options

VALIDATION_IMAGES_TO_REPORT = 1000
"""Validation images of a run whose test figures are reported: more images are left to train on."""


class RunOptions(Options):
    """How a verb that trains runs on this machine."""

    save_every: float = Field(300, ge=0, description="longest time between saves of a run's state, in seconds")
    priority: Literal["normal", "low"] = Field("normal", description="low gives way to all other processes")

    def yield_processor(self) -> None:
        """Lower the priority of the process, where that was asked for."""
        if self.priority == "low":
            os.nice(19)


def progress_bar(steps: Iterator[int]) -> Iterator[int]:
    """Return the steps; taking them draws a progress bar."""
    with needs_extra("training", "the progress bar"):
        from tqdm import tqdm

    # An iterator over a range knows how many steps are left.
    return iter(tqdm(steps, total=length_hint(steps) or None, unit="step", file=sys.stdout, mininterval=1))


@contextmanager
def resumable(*options: str) -> Iterator[None]:
    """Print the command that resumes a run which a signal stops, and exit as the signal would.

    ``options`` are what the command needs beside those that it was given.
    """
    from models.training.interruption import TrainingStopped

    try:
        yield
    except TrainingStopped as stopped:
        given = sys.argv[1:]
        command = shlex.join(["skipnet", *given, *(option for option in options if option not in given)])
        print(f"skipnet: {stopped}; resume with: {command}", file=sys.stderr)
        sys.exit(128 + stopped.number)
