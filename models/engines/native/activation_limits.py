"""Measure the largest activations of a network. The native engine needs them to use 16-bit integers."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from models.engines.folding import FoldedBlock, FoldedNetwork
from models.engines.native.layout import ActivationLimits
from models.engines.torch.forward import convolve, execute, forward, residual, shortcut
from models.gates import Limits

HEADROOM = 1.25
"""Limits are this much larger than what was measured. Beyond a limit, activations are clipped."""
LEAST = 1e-6
"""The smallest limit. A map may be zero everywhere, and a limit is a divisor."""


class Observer:
    """The largest magnitudes of the inputs of each block's residual convolutions, over all images seen."""

    def __init__(self, network: FoldedNetwork) -> None:
        self.network = network
        self.largest = {id(block): [0.0] * len(block.residual) for block in network.blocks}

    def see(self, block: FoldedBlock, x: Tensor) -> None:
        """Compute a block's hidden maps from its input [N, C, H, W] and keep the largest magnitudes."""
        largest = self.largest[id(block)]
        for index, convolution in enumerate(block.residual):
            largest[index] = max(largest[index], float(x.abs().max()))
            x = torch.relu_(convolve(x, convolution))

    def apply(self, block: FoldedBlock, x: Tensor, decisions: Tensor) -> Tensor:
        """Run a block with decisions [N] for ``forward``. Its input is measured even if the block is skipped."""
        self.see(block, x)
        skip = shortcut(block, x)
        return torch.where(decisions[:, None, None, None], torch.relu(residual(block, x) + skip), skip)

    def run(self, images: Tensor, limit: Tensor) -> None:
        """Run images [N, 3, H, W]. A gate's logit must exceed ``limit`` for a block to be executed."""
        network = self.network
        x = torch.relu_(convolve(images, network.stem))
        x = functional.max_pool2d(x, 3, 2, 1) if network.stem_pools else x
        # The pass of `forward` applies decisions to gated blocks only.
        for block in network.blocks[:1] if network.gates else network.blocks:
            self.see(block, x)
            x = execute(block, x, shortcut(block, x))
        forward(network, images, limit.expand(len(images)), self.apply)


@torch.inference_mode()
def measure_limits(network: FoldedNetwork, batches: Iterable[Tensor], threshold: float) -> ActivationLimits:
    """Return the limits for batches of images [N, 3, H, W], with the routes at ``threshold`` and with every block."""
    observer = Observer(network)
    for images in batches:
        for each in (threshold, 0.0):
            observer.run(images, Limits.of(each).logits)
    return tuple(
        tuple(max(HEADROOM * largest, LEAST) for largest in observer.largest[id(block)]) for block in network.blocks
    )
