"""An engine that runs the persistent kernel's own source on the CPU (thread_blocks.hpp, shim.hpp, driver.cpp)."""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from models.engines.folding import FoldedNetwork
from models.engines.persistent.build import GATES, SOURCE
from models.engines.persistent.engine import gate_kind
from models.engines.persistent.layout import filter_streams, gate_stream
from models.engines.protocol import Routed

HERE = Path(__file__).parent
KERNEL = SOURCE.parent
OPTIONS = ("-std=c++17", "-O2", "-march=native", "-fno-math-errno", "-Wno-unknown-pragmas", "-shared", "-fPIC")


@dataclass(frozen=True)
class Counts:
    """Counts of one run: instructions of warps, barriers of thread blocks, bytes, and faults."""

    multiplies: int
    matrices: int
    barriers: int
    fetched: int
    shared_read: int
    shared_written: int
    conflicts: int
    outside: int
    races: int
    diverged: int


def build(gate: str, *mutations: tuple[str, str]) -> Path:
    """Compile the kernel for one kind of gate for the CPU, once for each source.

    ``mutations`` are pairs of texts: one that occurs once in the source, and its replacement.
    """
    texts = {path.name: path.read_text() for path in sorted(KERNEL.glob("*.cu*"))}
    for old, new in mutations:
        found = [name for name, text in texts.items() for _ in range(text.count(old))]
        assert len(found) == 1, f"{old!r} must occur once in the kernel, but occurs in {found}"
        texts[found[0]] = texts[found[0]].replace(old, new)
    texts |= {name: (HERE / name).read_text() for name in ("thread_blocks.hpp", "shim.hpp", "driver.cpp")}
    options = (*OPTIONS, f"-DKIND_OF_GATE={gate}")
    digest = hashlib.sha256("".join([*texts.values(), *options]).encode()).hexdigest()[:12]
    library = Path(tempfile.gettempdir()) / f"skipnet-persistent-{os.getuid()}-{digest}.so"
    # Other workers that need the same library wait for it.
    with FileLock(library.with_suffix(".lock")):
        if not library.exists():
            compile_program(texts, "driver.cpp", options, library)
    return library


def compile_program(texts: dict[str, str], program: str, options: Sequence[str], library: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text)
        made = Path(folder) / library.name
        command = [os.environ.get("CXX") or "c++", *options, str(Path(folder) / program), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(library)


class SimulatedEngine:
    """Run a folded network on ``grid`` thread blocks. ``order`` is the seed of the order of warps."""

    name = "persistent"
    device = "cpu"

    def __init__(self, folded: FoldedNetwork, grid: int = 1, order: int = 1, library: Path | None = None) -> None:
        self.library = ctypes.CDLL(str(library or build(GATES[gate_kind(folded)])))
        self.folded, self.grid, self.order = folded, grid, order
        # Aligned like GPU memory. The shim counts unaligned loads.
        self.weights = [aligned(words) for words in (*filter_streams(folded), gate_stream(folded))]
        self.normalisation: NDArray[np.float32] | None = None
        """Of pixels [6]: the colours' scales and what is subtracted. None if the images are normalised."""
        self.queue = np.zeros(2, np.uint32)
        self.counts = Counts(*[0] * 10)

    def run(self, images: NDArray[Any], thresholds: NDArray[np.float32]) -> Routed:
        """Run a batch, as ``Engine.run`` does, and set ``counts``. With a ``normalisation``, images are pixels."""
        count, blocks = len(images), len(self.folded.blocks)
        pictures, thresholds = np.ascontiguousarray(images), np.ascontiguousarray(thresholds)
        done, ticket = np.zeros(1, np.uint32), 7
        logits = np.full((count, len(self.folded.head_bias)), np.nan, np.float32)
        probability = np.full((count, blocks - 1), np.nan, np.float32)
        executed = np.full((count, blocks - 1), 255, np.uint8)
        widths = [len(block.residual[-1].bias) for block in self.folded.blocks]
        arrays: tuple[NDArray[Any] | None, ...] = (
            *(pictures, self.normalisation, thresholds, *self.weights),
            *(logits, probability, executed, self.queue, done),
        )
        numbers = ticket, count, *(widths.count(width) for width in (16, 32, 64)), len(self.folded.head_bias)
        arguments: list[Any] = [ctypes.c_void_p(None if array is None else array.ctypes.data) for array in arrays]
        arguments += map(ctypes.c_int, numbers)
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        # The logits come first.
        readable = [logits, *(array for array in arrays if array is not None)]
        ranges = np.array([(array.ctypes.data, array.ctypes.data + array.nbytes) for array in readable], np.uintp)
        counted = np.zeros(10, np.int64)
        self.library.run_kernel(
            ctypes.c_uint(min(self.grid, count)),
            ctypes.c_uint64(self.order),
            pointers,
            ctypes.c_void_p(counted.ctypes.data),
            ctypes.c_void_p(ranges.ctypes.data),
            ctypes.c_size_t(len(ranges)),
        )
        self.counts = Counts(*counted.tolist())
        assert done[0] == ticket, "the host was not told that the results are there"
        if not self.folded.gates:
            return Routed(logits, np.ones_like(executed, np.bool_), np.ones_like(probability), "branch")
        assert executed.max(initial=0) <= 1, "a decision was not stored"
        return Routed(logits, executed.astype(np.bool_), probability, "branch")

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def aligned(words: NDArray[np.uint8]) -> NDArray[np.uint8]:
    room = np.empty(len(words) + 16, np.uint8)
    start = -room.ctypes.data % 16
    room[start : start + len(words)] = words
    return room[start : start + len(words)]
