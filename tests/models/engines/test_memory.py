"""Memory use stays constant while routes and batch sizes vary."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.engines import load_engine
from models.engines.protocol import Engine

WARM_UP_RUNS, RUNS = 60, 200
ALLOWED_MB = 8
"""A leak of one feature map (64 KiB) per run would exceed it: 200 runs are 12.5 MB."""


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def vary(engine: Engine, images: NDArray[np.float32], runs: int) -> None:
    """Run batches of 1 to 8 images, each image with its own threshold."""
    random = np.random.default_rng(runs)
    for _ in range(runs):
        size = int(random.integers(1, len(images) + 1))
        engine.run(images[:size], random.random(size, np.float32))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["torch", "onnxruntime", "native"])
def test_memory_is_constant(
    name: str, varied_checkpoint: Callable[[str], Checkpoint], make_images: Callable[[str], NDArray[np.float32]]
) -> None:
    architecture = "cifar10_rnn_gate_38"
    engine = load_engine(varied_checkpoint(architecture), name, "cpu", threads=1, routing="branch")
    images = make_images(architecture)
    vary(engine, images, WARM_UP_RUNS)
    before = resident_mb()
    vary(engine, images, RUNS)
    assert resident_mb() - before < ALLOWED_MB
    engine.close()
