"""The verification covers pixels, every batch size that is recorded, and thread blocks that take several images."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.engines.folding import fold
from models.engines.protocol import Routed
from models.engines.torch.engine import TorchEngine
from models.engines.verification import Disagreement, Verification, recorded_sizes
from models.preprocessing import InputSpec, normalise
from tests.models.engines.test_verification import Change, Faulty, shift_logit


class Queue(Faulty):
    """An engine whose output is changed if its thread blocks take a second image."""

    thread_blocks = 264

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        self.size = len(images) if self.thread_blocks < len(images) else 0
        return super().run(images, thresholds)


class Pixels(Faulty):
    """An engine that takes pixels, and whose output for them is changed."""

    def run_pixels(self, pixels: NDArray[np.uint8], thresholds: NDArray[np.float32]) -> Routed:
        assert (pixels.dtype.name, pixels.shape[1:]) == ("uint8", (32, 32, 3))
        images = normalise(pixels, InputSpec(height=32, width=32, resize=32, mean=(0.5,) * 3, std=(0.25,) * 3))
        return self.change(self.engine.run(images, thresholds))


def unchanged(routed: Routed) -> Routed:
    return routed


@pytest.mark.parametrize("change", [unchanged, shift_logit])
def test_queues_pixels_and_recorded_sizes_are_compared(
    varied_checkpoint: Callable[[str], Checkpoint], change: Change
) -> None:
    checkpoint = varied_checkpoint("cifar10_rnn_gate_38")
    verification = Verification(checkpoint)
    torch_engine = TorchEngine(fold(checkpoint.network))
    queue = Queue(torch_engine, change)
    for engine in (queue, Pixels(torch_engine, change, 0), Faulty(torch_engine, change, 16)):
        with nullcontext() if change is unchanged else pytest.raises(Disagreement, match="logits differ by"):
            verification.check(engine, [8, 16])
    assert queue.thread_blocks == 264
    assert recorded_sizes(32, 32) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert recorded_sizes(224, 224)[-1] == 64
