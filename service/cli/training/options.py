"""Options and functions that the training verbs share."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import length_hint
from typing import Literal

from pydantic import Field

from models.errors import needs_extra
from service.settings import Options

VALIDATION_IMAGES_TO_REPORT = 1000
"""Validation images of a run whose test figures are reported. They are few, so that more images remain for training."""


class RunOptions(Options):
    """Options of how training runs on this machine."""

    save_every: float = Field(300, ge=0, description="longest time between saves of a run's state, in seconds")
    priority: Literal["normal", "low"] = Field("normal", description="low: other processes run first")

    def yield_processor(self) -> None:
        """Lower the priority of the process if the option says so."""
        if self.priority == "low":
            os.nice(19)


def progress_bar(steps: Iterator[int]) -> Iterator[int]:
    """Return the steps, and draw a progress bar while they are iterated."""
    with needs_extra("training", "the progress bar"):
        from tqdm import tqdm

    # An iterator over a range knows the number of remaining steps.
    return iter(tqdm(steps, total=length_hint(steps) or None, unit="step", file=sys.stdout, mininterval=1))


@contextmanager
def resumable(*options: str) -> Iterator[None]:
    """If a signal stops the run or a process of it is lost, print the command that resumes it, and exit.

    ``options`` are added to the options of this command. The exit status is the signal's, or 1.
    """
    from models.training.distributed.group import ProcessLost, is_first
    from models.training.interruption import TrainingStopped

    try:
        yield
    except TrainingStopped as stopped:
        if is_first():
            print(f"skipnet: {stopped}; resume with: {resuming(options)}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    except ProcessLost as lost:
        print(f"skipnet: {lost}; resume from the last saved state with: {resuming(options)}", file=sys.stderr)
        sys.exit(1)


def resuming(options: Sequence[str]) -> str:
    """Return the command that resumes this run."""
    from models.training.distributed.group import local_processes, started_processes

    given = sys.argv[1:]
    command = shlex.join(["skipnet", *given, *(option for option in options if option not in given)])
    if started_processes() == 1:
        return command
    launcher = f"--nproc-per-node {local_processes()} --no-python {command}"
    if local_processes() == started_processes():
        return f"torchrun --standalone {launcher}"
    return f"torchrun {launcher} (on each host, with its options of torchrun)"
