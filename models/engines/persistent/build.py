"""Compile the persistent kernel (persistent.cu) with NVRTC. This needs no GPU.

``python -m models.engines.persistent.build`` compiles it for every kind of gate and GPU and prints the resources that
it uses as a table (docs/gpu-kernel.md).
"""

import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from models.engines.protocol import EngineError
from models.errors import install_command

if TYPE_CHECKING:
    from cuda.core import ObjectCode

SOURCE = Path(__file__).with_name("persistent.cu")
THREADS, SHARED_BYTES = 256, 82688
"""The size of a launch. convolution.cuh has the same numbers."""
GATES = {None: "NoGate", "rnn": "RecurrentGate", "feedforward_1": "PooledGate", "feedforward_2": "StridedGate"}
"""The kernel's template argument for each kind of gate."""

PTXAS = ("-v", "--register-usage-level=0")
"""ptxas logs the resources.

Two thread blocks of 256 threads leave 128 registers per thread. By default, ptxas loads values so early that it exceeds
them and spills (measured: 4 to 60 bytes, on sm_90 and sm_100).
"""

ARCHITECTURES = {
    "sm_80": ("A100", 164, 65536),
    "sm_89": ("L4, RTX 40", 100, 65536),
    "sm_90": ("H100, H200", 228, 65536),
    "sm_100": ("B200", 228, 65536),
    "sm_120": ("RTX 50", 100, 65536),
}
"""GPUs, and one multiprocessor's KB of shared memory and registers (CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability"). The driver reserves 1 KB of the memory for each thread block."""


@dataclass(frozen=True)
class Resources:
    """A compiled kernel's use of resources.

    ``registers`` per thread, bytes of ``shared`` memory per thread block, bytes of ``stack`` per thread, and bytes of
    ``spilled`` registers per thread.
    """

    registers: int
    shared: int
    stack: int
    spilled: int

    def blocks(self, architecture: str) -> int:
        """Return how many thread blocks fit on a multiprocessor."""
        _, kilobytes, registers = ARCHITECTURES[architecture]
        return min(kilobytes * 1024 // (self.shared + 1024), registers // (self.registers * THREADS))


def kernel_name(gates: str | None) -> str:
    return f"route<{GATES[gates]}>"


@cache
def compile_kernel(gates: str | None, architecture: str) -> "tuple[ObjectCode, str]":
    """Return the kernel for a kind of gate as a cubin for ``architecture`` (such as sm_90), and the compiler's log.

    It is compiled once for all models of this process. Raises EngineError if the compiler is missing or fails.
    """
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise EngineError(f"the persistent engine needs cuda-core ({error}): {install_command('cuda')}") from error
    log = CompilerLog()
    options = ProgramOptions(
        name=SOURCE.name, arch=architecture, std="c++17", include_path=str(SOURCE.parent), ptxas_options=list(PTXAS)
    )
    try:
        program = Program(SOURCE.read_text(), "c++", options)
        code = program.compile("cubin", name_expressions=(kernel_name(gates),), logs=log)
    # The library has separate exceptions for a missing NVRTC, an unknown architecture and an error in the source.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError(f"NVRTC cannot compile the persistent engine for {architecture}: {reason}") from error
    return code, log.text


class CompilerLog:
    """A text file in memory, to which the compiler writes."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def resources(gates: str | None, architecture: str) -> Resources:
    """Return the kernel's resources from the log of ptxas.

    Raises EngineError as ``compile_kernel`` does.
    """
    _, log = compile_kernel(gates, architecture)
    registers = re.search(r"Used (\d+) registers", log)
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    if registers is None or stack is None:
        raise EngineError(f"the compiler's log lacks the persistent kernel's resources: {log!r}")
    static = re.search(r"(\d+) bytes smem", log)
    shared = SHARED_BYTES + (int(static[1]) if static else 0)
    return Resources(int(registers[1]), shared, int(stack[1]), int(stack[2]))


def main() -> None:
    lines = [
        "| compiled for | GPUs | gate | registers per thread | spilled bytes | shared memory per thread block, KB | "
        "thread blocks per multiprocessor |",
        "|---|---|---|---|---|---|---|",
    ]
    for architecture, (gpus, _, _) in ARCHITECTURES.items():
        for gates in GATES:
            used = resources(gates, architecture)
            lines.append(
                f"| {architecture} | {gpus} | {gates or 'none'} | {used.registers} | {used.spilled} | "
                f"{used.shared / 1024:.1f} | {used.blocks(architecture)} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
