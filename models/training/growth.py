"""A deeper network grown from a trained one: the same function at first, with blocks more to learn with.

Net2Net (Chen et al. 2016) for residual networks: a block whose last batch norm scales by zero adds nothing, and the
ReLU behind it leaves what a ReLU gave as it was. So the grown network answers as the one that it was grown from, and
its gates may skip the new blocks from the first step on without loss.
"""

import torch
from torch import nn

from models.architectures import Architecture, first_blocks
from models.network import SkipNet


class CannotGrow(ValueError):
    """The network is not one that the other could have grown from."""


@torch.no_grad()
def grow(trained: SkipNet, architecture: Architecture, deeper: Architecture) -> SkipNet:
    """Return a fresh network with the weights of a trained one of fewer blocks, whose other blocks add nothing.

    A group's first block stays its first, the others are spread evenly. Gates are as they are made; raises CannotGrow
    where the trained network has some, or the other is not it with blocks more.
    """
    if architecture.gates is not None or not architecture.grows_into(deeper):
        raise CannotGrow(
            f"{architecture.name} does not grow into {deeper.name}: what grows has no gates, and gets more blocks"
        )
    network = deeper.build(trained.head.out_features)
    network.stem.load_state_dict(trained.stem.state_dict())
    network.head.load_state_dict(trained.head.state_dict())
    kept = dict(zip(places(architecture.blocks, deeper.blocks), trained.blocks, strict=True))
    for place, block in enumerate(network.blocks):
        if place in kept:
            block.load_state_dict(kept[place].state_dict())
        else:
            last = block.residual[-1]  # type: ignore[index]
            assert isinstance(last, nn.BatchNorm2d)
            last.weight.zero_()
    return network


def places(blocks: tuple[int, ...], deeper: tuple[int, ...]) -> list[int]:
    """Return where in the deeper network the blocks of the other stand."""
    groups = zip(first_blocks(deeper), blocks, deeper, strict=True)
    return [first + index * many // few for first, few, many in groups for index in range(few)]
