"""The saved state of a training run, from which it resumes with the same result."""

import io
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import UserError
from models.persistence.atomic_file import whole_file
from models.persistence.legacy_names import current_names
from models.training.distributed.group import broadcast, is_first, share
from models.training.objective import Step

LOG, STATE = "log.jsonl", "state.pt"
NAMED = 5
"""The most differences that an error names. A state of other stages differs in every value of their recipes."""


@dataclass
class Progress:
    """The progress of a run: the number of its ``stage``, the next ``step``, and the sums of the epoch (`Step.sums`).

    ``seconds`` are wall time with pauses, and ``cpu_seconds`` are CPU time on all cores. ``logged`` is the length of
    the log in bytes.
    """

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    images: int = 0
    sums: Tensor | None = None
    logged: int = 0

    def add(self, step: Step, count: int, seconds: float, cpu_seconds: float) -> None:
        """Count a step. The sums stay on its device, so that the host does not wait for them."""
        sums = step.sums(count)
        self.sums = sums if self.sums is None else self.sums.to(sums.device) + sums
        self.images += count
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds
        self.step += 1

    def begin_epoch(self) -> None:
        """Reset the sums of the epoch."""
        self.seconds, self.cpu_seconds, self.images, self.sums = 0.0, 0.0, 0, None


def cut_log(file: Path, progress: Progress) -> None:
    """Truncate a log to the lines that the state counts.

    This removes the lines of other runs and of an epoch to repeat.
    """
    with file.open("ab") as log:
        log.truncate(min(log.tell(), progress.logged))


def append_record(file: Path, record: dict[str, Any], progress: Progress) -> None:
    """Append an epoch's record to the log, in the first process, and begin the next epoch."""
    if is_first():
        with file.open("ab") as log:
            log.write(json.dumps(record).encode() + b"\n")
            progress.logged = log.tell()
    progress.begin_epoch()


class Stopwatch:
    """Measure laps in wall time and in CPU time of the process."""

    def __init__(self) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter(), time.process_time()

    def lap(self) -> tuple[float, float]:
        """Return the seconds of wall time and of CPU time since the last lap."""
        before = self.seconds, self.cpu_seconds
        self.seconds, self.cpu_seconds = time.perf_counter(), time.process_time()
        return self.seconds - before[0], self.cpu_seconds - before[1]


class StateFile:
    """The file ``state.pt`` of a run, which is loaded without unpickling objects.

    Only the first process of a run reads and writes it. For the others the folder need not exist.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], interval: float) -> None:
        self.path = folder / STATE
        self.identity, self.interval = identity, interval
        self.saved = time.monotonic()

    def due(self) -> bool:
        """Return whether ``interval`` seconds have passed since the last save."""
        return time.monotonic() - self.saved >= self.interval

    def save(self, progress: Progress, network: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Replace the saved state.

        Raises OSError if the write fails. The earlier state is then kept.
        """
        if not is_first():
            return
        state = {
            "identity": self.identity,
            "progress": asdict(progress),
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        # torch.save to a file would hide the reason of a failed write.
        content = io.BytesIO()
        torch.save(state, content)
        with whole_file(self.path) as file:
            file.write(content.getbuffer())
        self.saved = time.monotonic()

    def load(self, network: nn.Module) -> tuple[Progress, dict[str, Any] | None]:
        """Restore ``network``, and return the progress and the optimiser's state if a state was saved.

        Raises UserError for a damaged file and for the state of a run with other options.
        """
        content = broadcast(self.path.read_bytes() if is_first() and self.path.exists() else b"")
        if not content and not self.path.exists():
            return Progress(), None
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if is_first():  # Folders may have other names on other hosts.
                self.compare(current_names(state["identity"]))
            network.load_state_dict(state["network"])
            return Progress(**state["progress"]), state["optimizer"]
        except UserError:
            raise
        except Exception as error:  # torch.load documents no exceptions, and the file may have any content.
            raise UserError(f"{self.path} is damaged ({error}); delete it and train without --resume") from error

    def finished(self) -> bool | None:
        """Return whether the file is the state of a finished run. None means that no run can resume from it."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            return bool(state["progress"]["stage"] >= len(state["identity"]["stages"]))
        except Exception:  # There is no file, or it is not a state.
            return None

    def require_finished(self) -> None:
        """Raise UserError if the file is the state of a run that has not finished."""
        if self.finished() is False:
            raise UserError(
                f"{self.path} is the state of an unfinished run: add --resume to continue it, or "
                "choose another --output"
            )

    def compare(self, found: dict[str, Any]) -> None:
        """Raise UserError if the identity in a state is not that of this run."""
        differing = [key for key in self.identity | found if self.identity.get(key) != found.get(key)]
        # Several processes never compile, even if the run compiled before.
        differing = [key for key in differing if key != "compile" or share().size == 1]
        if differing:
            raise UserError(
                f"{self.path} belongs to a run with "
                + ", ".join(f"{key}={found.get(key)!r}" for key in differing[:NAMED])
                + "; resume with the same options or choose another --output"
            )


def discard_state(folder: Path) -> None:
    """Delete the state of a finished run.

    Raises UserError if the run has not finished.
    """
    state = StateFile(folder, {}, 0)
    state.require_finished()
    state.path.unlink(missing_ok=True)


def is_finished(folder: Path) -> bool:
    """Return whether the run in a folder has finished."""
    return StateFile(folder, {}, 0).finished() is True
