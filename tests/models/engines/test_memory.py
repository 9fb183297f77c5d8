"""Memory stays flat over many inferences of varying routes and batch sizes.

SKIPNET_SOAK=100000 pytest tests/models/engines/test_memory.py      the long form
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import Checkpoint
from models.engines import load_engine

INFERENCES = int(os.environ.get("SKIPNET_SOAK", "4000"))
BATCHES = (1, 2, 3, 5, 8, 13, 21, 32)
ALLOWED_GROWTH = 8 << 20


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system has no /proc to read memory from")
@pytest.mark.parametrize("name", ["native", "onnxruntime"])
def test_memory_stays_flat(name: str, lively_checkpoint: Callable[[str], Checkpoint]) -> None:
    checkpoint = lively_checkpoint("cifar10_rnn_gate_38")
    engine = load_engine(checkpoint, name, "cpu", threads=2)
    random = np.random.default_rng(0)
    images = random.standard_normal((max(BATCHES), 3, 32, 32), np.float32)

    def infer(count: int) -> None:
        done = 0
        while done < count:
            batch = int(random.choice(BATCHES))
            engine.run(images[:batch], random.random(batch, np.float32))
            done += batch

    try:
        infer(INFERENCES // 4)
        before = resident()
        infer(INFERENCES)
        grown = resident() - before
    finally:
        engine.close()
    assert grown < ALLOWED_GROWTH, f"{grown / 2**20:.1f} MiB more after {INFERENCES} inferences"
