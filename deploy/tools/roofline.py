"""Estimate the persistent kernel's speed on several GPUs.

    python -m deploy.tools.roofline

This prints the tables of docs/gpu-roofline.md. The work is counted by running the kernel on simulated thread blocks.
The speed of a GPU is from its data sheet, or an assumption that the page states.
"""

import sys
from dataclasses import astuple, dataclass

import numpy as np
import torch

from models.engines.folding import fold
from models.evaluation.forced_routes import force_route, random_network
from models.network import SkipNet
from tests.models.engines.persistent.simulated import Counts, SimulatedEngine

MULTIPLY_ADDS = 16 * 8 * 16
"""The MACs of one mma.m16n8k16."""
MATRIX_BYTES = 512
"""The bytes that one ldmatrix of four matrices reads."""
PIPE_BYTES = 128
"""Bytes of shared memory and L1 together, per clock and multiprocessor, on all of these GPUs."""
BARRIER_CLOCKS = 40
GATE_CLOCKS = 500
"""Assumptions: clocks of a gate's chain of dependent steps, which no other warp of the image hides, and of a barrier.
"""
PARTS = (("16 channels", 2), ("16 to 32", 6), ("32", 8), ("32 to 64", 12), ("64", 15))
"""Blocks of ResNet-38, by number."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    ``macs`` and ``l2_bytes`` are per clock and multiprocessor. For ``l2_bytes``, all multiprocessors read at once.
    """

    name: str
    multiprocessors: int
    gigahertz: float
    macs: int
    l2_bytes: int
    thread_blocks: int


GPUS = (
    Gpu("A100", 108, 1.41, 1024, 47, 2),
    Gpu("L4", 58, 2.04, 512, 24, 1),
    Gpu("H100", 132, 1.83, 1290, 24, 2),
    Gpu("B200", 148, 1.85, 1290, 24, 2),
    Gpu("RTX 5090", 170, 2.41, 256, 24, 1),
)


@dataclass(frozen=True)
class Work:
    """The work of one image on one multiprocessor."""

    multiplies: float
    pipe_bytes: float
    weight_bytes: float
    barriers: float
    gates: float

    @classmethod
    def of(cls, counts: Counts, gates: int) -> "Work":
        # Each matrix of an ldmatrix takes one clock of the pipe, and one more if its rows share banks.
        pipe = counts.matrices * MATRIX_BYTES + counts.conflicts * PIPE_BYTES
        pipe += counts.shared_read + counts.shared_written + counts.fetched
        return cls(counts.multiplies, pipe, 0, counts.barriers, gates)

    def interpolate(self, other: "Work", share: float) -> "Work":
        return Work(*(a + share * (b - a) for a, b in zip(astuple(self), astuple(other), strict=True)))

    def clocks(self, gpu: Gpu) -> dict[str, float]:
        return {
            "tensor cores": self.multiplies * MULTIPLY_ADDS / gpu.macs,
            "shared memory and L1": self.pipe_bytes / PIPE_BYTES,
            "L2": self.weight_bytes / gpu.l2_bytes,
        }

    def latency(self, gpu: Gpu) -> float:
        """Return the microseconds for a single image: the slowest resource plus the waits."""
        waits = self.barriers * BARRIER_CLOCKS + self.gates * GATE_CLOCKS
        return (max(self.clocks(gpu).values()) + waits) / gpu.gigahertz / 1e3

    def throughput(self, gpu: Gpu) -> float:
        """Return images per second in a large batch. Two thread blocks per multiprocessor hide each other's waits."""
        busy, alone = max(self.clocks(gpu).values()), self.latency(gpu) * gpu.gigahertz * 1e3
        return gpu.multiprocessors * gpu.gigahertz * 1e9 / max(busy, alone / gpu.thread_blocks)


def bounded_network(name: str) -> SkipNet:
    """Return a random network whose maps do not grow with depth and so stay in the range of fp16."""
    network = random_network(name)
    with torch.no_grad():
        for block in network.blocks:
            block.residual[-1].weight.fill_(0.1)  # type: ignore[index, union-attr]
    return network


def measure(network: SkipNet, decisions: np.ndarray) -> Work:
    """Return the work of one image on a route. The warps of a thread block share weights, which count once."""
    folded = fold(force_route(network, decisions))
    engine = SimulatedEngine(folded)
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    output = engine.run(images, np.full(1, 0.5, np.float32))
    assert (output.executed[0] == decisions).all()
    runs = np.append(True, decisions)
    residual = [sum(each.weight.numel() for each in block.residual) * 2 for block in folded.blocks]
    work = Work.of(engine.counts, len(decisions))
    streamed = float((np.array(residual) * runs).sum()) + engine.weights[4].nbytes
    return Work(work.multiplies, work.pipe_bytes, streamed, work.barriers, work.gates)


def part_table() -> list[str]:
    network = bounded_network("cifar10_rnn_gate_38")
    none = np.zeros(17, np.bool_)
    base = measure(network, none)
    lines = [
        "| part | MACs | mma | through shared memory and L1, KB | weights from L2, KB | barriers |",
        "|---|---|---|---|---|---|",
    ]

    def row(name: str, work: Work) -> str:
        return (
            f"| {name} | {work.multiplies * MULTIPLY_ADDS / 1e6:.2f} M | {work.multiplies:,.0f} | "
            f"{work.pipe_bytes / 1024:,.0f} | {work.weight_bytes / 1024:,.1f} | {work.barriers:.0f} |"
        )

    for name, block in PARTS:
        one = none.copy()
        one[block - 1] = True
        more = astuple(measure(network, one))
        lines.append(row(f"executed block, {name}", Work(*(a - b for a, b in zip(more, astuple(base), strict=True)))))
    lines.append(row("the rest of an image, ResNet-38: stem, first block, projections, 17 gates, head", base))
    return lines


def estimate_table(name: str) -> list[str]:
    network = bounded_network(name)
    decisions = network.decision_count
    none, everything = (measure(network, np.full(decisions, value)) for value in (False, True))
    lines = [
        "| " + name + " | " + " | ".join(f"{share:.0%} executed" for share in SHARES) + " | limited by, all executed |",
        "|---|" + "---|" * (len(SHARES) + 1),
    ]
    for gpu in GPUS:
        works = [none.interpolate(everything, share) for share in SHARES]
        cells = [f"{work.latency(gpu):.0f} us, {work.throughput(gpu) / 1e3:,.0f} k/s" for work in works]
        clocks = everything.clocks(gpu)
        lines.append(f"| {gpu.name} | " + " | ".join(cells) + f" | {max(clocks, key=lambda each: clocks[each])} |")
    return lines


def main() -> None:
    torch.set_num_threads(1)
    tables = [part_table(), estimate_table("cifar10_rnn_gate_38"), estimate_table("cifar10_rnn_gate_110")]
    sys.stdout.write("\n\n".join("\n".join(table) for table in tables) + "\n")


if __name__ == "__main__":
    main()
