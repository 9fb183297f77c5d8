"""Keep the measured choice of engines between two starts, in the user's cache folder.

A choice holds for one checkpoint, one processor and one set of library versions. A change of any of them gives another
file name, so an outdated choice is never read.
"""

import hashlib
import logging
from importlib import metadata
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.checkpoint import CONFIG, WEIGHTS, Checkpoint
from models.engines.native.engine import NativeEngine
from models.engines.protocol import Engine
from models.engines.routing_switch import Costs, RoutingSwitch
from models.machine import processor_name
from models.macs import Mode
from models.persistence.atomic_file import whole_file

LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "skipnet-serve", "torch")
SOURCES = (".py", ".cpp", ".hpp")
"""Endings of the files in `models/engines` whose change makes a choice outdated."""

log = logging.getLogger(__name__)


class ModeChoice(BaseModel):
    """The engine of one routing mode. ``most_spread`` is that of the native engine."""

    model_config = ConfigDict(extra="forbid")

    engine: str
    most_spread: int | None = None


class BatchCosts(BaseModel):
    """The measured seconds of one batch size, as `routing_switch.Costs` holds them."""

    model_config = ConfigDict(extra="forbid")

    branch: tuple[float, float, float]
    mask: float


class Choice(BaseModel):
    """The engines of a network by routing mode, and of two engines the costs by batch size."""

    model_config = ConfigDict(extra="forbid")

    modes: dict[Mode, ModeChoice] = Field(min_length=1)
    costs: dict[int, BatchCosts] = {}

    @classmethod
    def of(cls, engine: Engine, mode: Mode) -> "Choice":
        """Return the choice of which ``engine`` is the result. It runs in ``mode`` if it is not a switch."""
        if not isinstance(engine, RoutingSwitch):
            return cls(modes={mode: mode_choice(engine)})
        costs = {size: BatchCosts(branch=cost.branch, mask=cost.mask) for size, cost in engine.costs.items()}
        return cls(modes={mode: mode_choice(each) for mode, each in engine.engines.items()}, costs=costs)

    @property
    def routing_costs(self) -> dict[int, Costs]:
        """The costs in the form of `RoutingSwitch`."""
        return {size: Costs(cost.branch, cost.mask, "branch") for size, cost in self.costs.items()}


def mode_choice(engine: Engine) -> ModeChoice:
    return ModeChoice(engine=engine.name, most_spread=engine.most_spread if isinstance(engine, NativeEngine) else None)


class ChoiceCache:
    """The file that keeps the choice for a checkpoint on this machine. A file that cannot be used is ignored."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, threads: int, routing: str) -> None:
        """``folder`` is created if it is missing. Raises OSError if the checkpoint's files cannot be read."""
        state = [
            *(sha256_of(checkpoint.folder / name) for name in (CONFIG, WEIGHTS)),
            *(f"{name} {version_of(name)}" for name in LIBRARIES),
            engine_sources(),
            processor_name(),
            torch.backends.cpu.get_cpu_capability(),
            str(threads),
            routing,
        ]
        self.file = folder / f"{hashlib.sha256(chr(10).join(state).encode()).hexdigest()[:32]}.json"

    def read(self) -> Choice | None:
        """Return the kept choice, or None if there is none."""
        try:
            return Choice.model_validate_json(self.file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("%s is ignored: %s", self.file, error)
            return None

    def write(self, choice: Choice) -> None:
        """Keep a choice. If the file cannot be written, log it: the next start measures again."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.file) as file:
                file.write(choice.model_dump_json().encode())
        except OSError as error:
            log.info("the choice of engines is not kept: %s", error)


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def version_of(library: str) -> str:
    """Return the version of an installed library, or "none"."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "none"


def engine_sources() -> str:
    """Return the SHA-256 of the engines' source."""
    folder = Path(__file__).parent
    files = sorted(file for file in folder.rglob("*") if file.suffix in SOURCES)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
