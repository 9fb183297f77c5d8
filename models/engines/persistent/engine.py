"""The persistent engine: it runs a CIFAR network in one launch of one CUDA kernel (persistent.cu)."""

import numpy as np
from numpy.typing import NDArray

from models.engines.folding import ConvolutionalGate, FoldedNetwork, LayeredGate
from models.engines.persistent.gpu import Gpu
from models.engines.persistent.layout import filter_streams, gate_stream
from models.engines.persistent.slot import CHUNK, SIDE, Images, Results, Slot
from models.engines.protocol import EngineError, Routed, check_batch, closed, plain_output

SLOTS = 2
UNCHANGED = np.repeat(np.array([[1], [0]], np.float32), 3, axis=1)
WIDTHS = (16, 32, 64)


def suits(folded: FoldedNetwork, height: int = SIDE, width: int = SIDE) -> bool:
    """Return whether the kernel can run a network.

    It needs CIFAR's stem and widths, basic blocks, the paper's gates, and images of 32 x 32 pixels.
    """
    widths = [len(block.residual[-1].bias) for block in folded.blocks]
    shaped = not folded.stem_pools and sorted(set(widths)) == list(WIDTHS) and widths == sorted(widths)
    basic = all(len(block.residual) == 2 and block.residual[0].weight.shape[-1] == 3 for block in folded.blocks)
    known = not any(isinstance(gate, LayeredGate) for gate in folded.gates)
    return shaped and basic and known and (height, width) == (SIDE, SIDE)


def gate_kind(folded: FoldedNetwork) -> str | None:
    """Return a folded network's kind of gate, by its name in ``SkipNet.gate_kind``."""
    if not folded.gates:
        return None
    gate = folded.gates[0]
    if not isinstance(gate, ConvolutionalGate):
        return "rnn"
    return "feedforward_1" if gate.pools else "feedforward_2"


class PersistentEngine:
    """Run a folded network that ``suits`` the kernel on one GPU, in half precision with fp32 sums.

    An image's output does not depend on its batch. A batch runs in parts of ``CHUNK`` images: while the kernel runs
    one, the next is copied to pinned memory. Raises EngineError if the network, the library, the GPU or the compiler
    does not allow it.
    """

    name = "persistent"

    def __init__(self, folded: FoldedNetwork, device: str, normalisation: NDArray[np.float32] = UNCHANGED) -> None:
        """``normalisation`` is that of pixels (``models.preprocessing``)."""
        if not suits(folded):
            raise EngineError("the persistent engine runs CIFAR-shaped networks only; choose the engine torch")
        self.device = device
        self.gated = bool(folded.gates)
        self.classes, self.decisions = len(folded.head_bias), len(folded.blocks) - 1
        widths = [len(block.residual[-1].bias) for block in folded.blocks]
        self.gpu = Gpu(int(device.partition(":")[2] or 0), gate_kind(folded))
        try:
            weights = [self.gpu.upload(words) for words in (*filter_streams(folded), gate_stream(folded))]
            blocks = [widths.count(width) for width in WIDTHS]
            scales = self.gpu.upload(normalisation)
            self.slots = [Slot(self.gpu, weights, blocks, self.classes, scales) for _ in range(SLOTS)]
        except EngineError:
            self.gpu.close()
            raise
        self.thread_blocks = self.gpu.thread_blocks

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run a batch, as ``Engine.run`` does.

        Raises ValueError for images of another shape, and EngineError if the GPU fails or the engine is closed.
        """
        return self.route(images, thresholds, (3, SIDE, SIDE))

    def run_pixels(self, pixels: NDArray[np.uint8], thresholds: NDArray[np.float32]) -> Routed:
        """Run decoded images, as ``PixelEngine.run_pixels`` does. Raises what ``run`` raises."""
        return self.route(pixels, thresholds, (SIDE, SIDE, 3))

    def route(self, images: Images, thresholds: NDArray[np.float32], shape: tuple[int, int, int]) -> Routed:
        check_batch(images, thresholds)
        if images.shape[1:] != shape:
            raise ValueError(f"images have the shape {images.shape}, not (N, {', '.join(map(str, shape))})")
        if not self.slots:
            raise closed(self)
        results = self.run_parts(images, thresholds)
        logits, probability, executed = (
            results[0] if len(results) == 1 else map(np.concatenate, zip(*results, strict=True))
        )
        if not self.gated:
            return plain_output(logits, self.decisions + 1, "branch")
        return Routed(logits, executed, probability, "branch")

    def run_parts(self, images: Images, thresholds: NDArray[np.float32]) -> list[Results]:
        """Run parts of ``CHUNK`` images, each in the slot of the one before the last."""
        results = []
        starts = range(0, len(images), CHUNK)
        driver = self.gpu.driver
        driver.cuCtxPushCurrent(self.gpu.context)
        try:
            for number, start in enumerate(starts):
                slot = self.slots[number % SLOTS]
                if number >= SLOTS:
                    results.append(slot.finish())
                slot.start(images[start : start + CHUNK], thresholds[start : start + CHUNK], self.thread_blocks)
            for number in range(max(0, len(starts) - SLOTS), len(starts)):
                results.append(self.slots[number % SLOTS].finish())
        finally:
            driver.cuCtxPopCurrent()
        return results

    def close(self) -> None:
        """Release the GPU's and the pinned memory."""
        if self.slots:
            self.slots = []
            self.gpu.close()
