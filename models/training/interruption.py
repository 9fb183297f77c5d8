"""SIGINT and SIGTERM during training: the run stops after its current step, and its state is saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from models.errors import UserError
from models.training.distributed.group import started_processes

STOPPING = (signal.SIGINT, signal.SIGTERM)


class TrainingStopped(UserError):
    """A signal stopped the run after its state was saved. The command line adds the command that resumes it."""

    def __init__(self, number: int, state: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the state is saved in {state}")
        self.number = number


@dataclass
class StopRequest:
    """The number of the signal that stops the run, if there was one."""

    number: int | None = None

    def check(self, state: Path) -> None:
        """Raise TrainingStopped if a signal has arrived in this process. Save the state before the call."""
        stop_at(state, self.number)


def stop_at(state: Path, number: int | None) -> None:
    """Raise TrainingStopped if a signal has arrived. Save the state before the call."""
    if number is not None:
        raise TrainingStopped(number, state)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request to stop. A second one ends the process.

    Under torchrun, a second signal is ignored: torchrun forwards the user's signal, sends its own signal, and kills
    processes that hang.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in STOPPING}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def stop(number: int, _: FrameType | None) -> None:
        request.number = number
        if started_processes() == 1:
            restore()

    for number in STOPPING:
        signal.signal(number, stop)
    try:
        yield request
    finally:
        restore()
