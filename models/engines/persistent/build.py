"""Compiles the persistent kernel (persistent.cu) with NVRTC, for a GPU that need not be here.

``python -m models.engines.persistent.build`` compiles it for every kind of gate and GPU and writes what it takes
of them as a table (docs/gpu-kernel.md).
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.engines.protocol import EngineError

if TYPE_CHECKING:
    from cuda.core import ObjectCode

SOURCE = Path(__file__).with_name("persistent.cu")
THREADS, SHARED_BYTES = 256, 79616
"""Of a launch; convolution.cuh works out the same."""
GATES = {None: "NoGate", "rnn": "RecurrentGate", "feedforward_1": "PooledGate", "feedforward_2": "StridedGate"}
"""The kernel's template argument for each kind of gate that a network can have."""

PTXAS = ("-v", "--register-usage-level=0")
"""What it takes is logged. Two thread blocks of 256 threads leave 128 registers a thread; by default ptxas fills them,
and more, with what it fetches early, and spills (measured: 4 to 60 bytes, on sm_90 and sm_100)."""

ARCHITECTURES = {
    "sm_80": ("A100", 164, 65536),
    "sm_89": ("L4, RTX 40", 100, 65536),
    "sm_90": ("H100, H200", 228, 65536),
    "sm_100": ("B200", 228, 65536),
    "sm_120": ("RTX 50", 100, 65536),
}
"""GPUs, KB of shared memory and registers of one multiprocessor (CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability"). A thread block may have all of the memory but 1 KB, which the driver keeps
for each."""


class PersistentUnavailable(EngineError):
    """The persistent engine cannot run this network on this machine; the message says why and what to do."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers a thread, bytes of shared memory a thread block, bytes of stack and
    of registers spilled to it a thread.
    """

    registers: int
    shared: int
    stack: int
    spilled: int

    def blocks(self, architecture: str) -> int:
        """Return how many thread blocks fit on a multiprocessor at once."""
        _, kilobytes, registers = ARCHITECTURES[architecture]
        return min(kilobytes * 1024 // (self.shared + 1024), registers // (self.registers * THREADS))


def kernel_name(gates: str | None) -> str:
    return f"route<{GATES[gates]}>"


def compile_kernel(gates: str | None, architecture: str) -> "tuple[ObjectCode, str]":
    """Return the kernel for a kind of gate as a cubin for ``architecture`` (sm_90), and what the compiler said of it.

    Raises PersistentUnavailable where the compiler is missing or fails.
    """
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise PersistentUnavailable(
            f"the persistent engine needs cuda-core: pip install '.[cuda]' ({error})"
        ) from error
    log = Log()
    options = ProgramOptions(
        name=SOURCE.name, arch=architecture, std="c++17", include_path=str(SOURCE.parent), ptxas_options=list(PTXAS)
    )
    try:
        program = Program(SOURCE.read_text(), "c++", options)
        code = program.compile("cubin", name_expressions=(kernel_name(gates),), logs=log)
    # The library tells a missing NVRTC, an unknown architecture and an error in the source by other types each.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise PersistentUnavailable(
            f"NVRTC cannot compile the persistent engine for {architecture}: {reason}"
        ) from error
    return code, log.text


class Log:
    """Somewhere for the compiler to write to."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def resources(gates: str | None, architecture: str) -> Resources:
    """Return what ptxas says that the kernel takes. Raises PersistentUnavailable as ``compile_kernel`` does."""
    _, log = compile_kernel(gates, architecture)
    registers = re.search(r"Used (\d+) registers", log)
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    if registers is None or stack is None:
        raise PersistentUnavailable(f"the compiler does not say what the persistent engine takes: {log!r}")
    static = re.search(r"(\d+) bytes smem", log)
    shared = SHARED_BYTES + (int(static[1]) if static else 0)
    return Resources(int(registers[1]), shared, int(stack[1]), int(stack[2]))


def main() -> None:
    lines = [
        "| compiled for | GPUs | gate | registers a thread | spilled, bytes | shared memory a thread block, KB | "
        "thread blocks a multiprocessor |",
        "|---|---|---|---|---|---|---|",
    ]
    for architecture, (gpus, _, _) in ARCHITECTURES.items():
        for gates in GATES:
            took = resources(gates, architecture)
            lines.append(
                f"| {architecture} | {gpus} | {gates or 'none'} | {took.registers} | {took.spilled} | "
                f"{took.shared / 1024:.1f} | {took.blocks(architecture)} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
