"""What a run must remember to go on as if it had never stopped; saved whole or not at all."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.atomic_file import whole_file
from models.legacy_names import current_names
from models.training.objective import Step

LOG, STATE = "log.jsonl", "state.pt"
NAMED = 5
"""Differences that are said where a state is another run's: another stage differs in all of its recipe."""


class StateError(ValueError):
    """A run's saved state can't be used; the message says what to do."""


@dataclass
class Progress:
    """Where a run stands: ``step`` of stage number ``stage``, and the sums of the epoch it is in (`Step.sums`).

    ``seconds`` are by the clock, a pause counts; ``cpu_seconds`` are the process's own, on all cores. ``logged`` is the
    length of the run's log in bytes.
    """

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    images: int = 0
    sums: Tensor | None = None
    logged: int = 0

    def add(self, step: Step, images: int, seconds: float, cpu_seconds: float) -> None:
        """Count a step; the sums stay on its device, so that the host need not wait for them."""
        sums = step.sums(images)
        self.sums = sums if self.sums is None else self.sums.to(sums.device) + sums
        self.images += images
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds
        self.step += 1

    def begin_epoch(self) -> None:
        """Forget the last epoch's sums."""
        self.seconds, self.cpu_seconds, self.images, self.sums = 0.0, 0.0, 0, None


def cut_log(file: Path, progress: Progress) -> None:
    """Take from a run's log what its state knows nothing of: another run's rows, or of an epoch to be done again."""
    with file.open("ab") as log:
        log.truncate(min(log.tell(), progress.logged))


def log_row(file: Path, row: dict[str, Any], progress: Progress) -> None:
    """Append an epoch's figures to a run's log, and begin the next epoch."""
    with file.open("ab") as log:
        log.write(json.dumps(row).encode() + b"\n")
        progress.logged = log.tell()
    progress.begin_epoch()


class Stopwatch:
    """Times laps by the clock and by what the process had of the processor."""

    def __init__(self) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter(), time.process_time()

    def lap(self) -> tuple[float, float]:
        """Return the seconds and the processor's seconds since the last lap."""
        before = self.seconds, self.cpu_seconds
        self.seconds, self.cpu_seconds = time.perf_counter(), time.process_time()
        return self.seconds - before[0], self.cpu_seconds - before[1]


class StateFile:
    """``state.pt`` of a run, written at least every ``interval`` seconds and loaded without unpickling objects."""

    def __init__(self, folder: Path, identity: dict[str, Any], interval: float) -> None:
        self.path = folder / STATE
        self.identity, self.interval = identity, interval
        self.saved = time.monotonic()

    def due(self) -> bool:
        """Whether the last save is ``interval`` seconds ago."""
        return time.monotonic() - self.saved >= self.interval

    def save(self, progress: Progress, network: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Write the state beside the old one, then replace that."""
        state = {
            "identity": self.identity,
            "progress": asdict(progress),
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        with whole_file(self.path) as file:
            torch.save(state, file)
        self.saved = time.monotonic()

    def load(self, network: nn.Module) -> tuple[Progress, dict[str, Any] | None]:
        """Restore ``network``; return the progress and the optimiser's state.

        Raises StateError where the file is damaged or belongs to a run with other options.
        """
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            self.compare(current_names(state["identity"]))
            network.load_state_dict(state["network"])
            return Progress(**state["progress"]), state["optimizer"]
        except StateError:
            raise
        except Exception as error:  # torch.load raises whatever its parts do, and a foreign file holds anything
            raise StateError(f"{self.path} is damaged ({error}); delete it and train without --resume") from error

    def require_finished(self) -> None:
        """Raise StateError where the file is of a run, with whatever options, that has stages to go."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            finished = state["progress"]["stage"] >= len(state["identity"]["stages"])
        except Exception:  # no file, or one that no run can go on from
            return
        if not finished:
            raise StateError(
                f"{self.path} is the state of an unfinished run: add --resume to go on with it, "
                "or choose another --output"
            )

    def compare(self, found: dict[str, Any]) -> None:
        """Raise StateError where a state's identity is not this run's."""
        differing = [key for key in self.identity | found if self.identity.get(key) != found.get(key)]
        if differing:
            raise StateError(
                f"{self.path} belongs to a run with "
                + ", ".join(f"{key}={found.get(key)!r}" for key in differing[:NAMED])
                + "; resume with the same options or choose another --output"
            )
