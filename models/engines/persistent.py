"""The persistent engine: a whole CIFAR-shaped network, stem to logits, in one launch of one CUDA kernel (persistent.cu)."""

import numpy as np
from numpy.typing import NDArray

from models.engines.engine import EngineError, Routed
from models.engines.folding import FoldedNetwork

SIDE = 32
"""Pixels of an image's side; the kernel keeps whole maps in shared memory, which it has for this size."""
WIDTHS = (16, 32, 64)


class PersistentUnavailable(EngineError):
    """The persistent engine cannot run this network on this machine; the message says why and what to do."""


def suits(folded: FoldedNetwork, height: int = SIDE, width: int = SIDE) -> bool:
    """Whether the kernel can run a network on images of this size: CIFAR's stem and widths, basic blocks, 32 x 32."""
    widths = [len(block.residual[-1].bias) for block in folded.blocks]
    shaped = not folded.stem_pools and sorted(set(widths)) == list(WIDTHS) and widths == sorted(widths)
    basic = all(len(block.residual) == 2 and block.residual[0].weight.shape[-1] == 3 for block in folded.blocks)
    return shaped and basic and (height, width) == (SIDE, SIDE)


class PersistentEngine:
    """Runs a folded network that ``suits`` on one GPU; an image's answer does not depend on its batch.

    Raises PersistentUnavailable where library, GPU or compiler fails.
    """

    name = "persistent"

    def __init__(self, folded: FoldedNetwork, device: str) -> None:
        if not suits(folded):
            raise PersistentUnavailable(
                "the persistent engine runs CIFAR-shaped networks only; choose the engine torch"
            )
        self.device = device
        raise PersistentUnavailable("the persistent engine's kernel is not here yet; choose the engine torch")

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """See Engine.run. Raises ValueError for images of another shape."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back the GPU's memory."""
