"""Depth growth: a deeper network that starts with the function of a trained one.

Net2Net (Chen et al. 2016) for residual networks: a block whose last batch norm scales by zero adds nothing, and the
ReLU after it does not change the output of another ReLU. So the deeper network starts with the outputs of the trained
one, and skipping a new block does not change them.
"""

import torch
from torch import nn

from models.architectures import Architecture, first_blocks
from models.errors import UserError
from models.network import SkipNet


@torch.no_grad()
def grow(trained: SkipNet, architecture: Architecture, deeper: Architecture) -> SkipNet:
    """Return a network of the ``deeper`` architecture with a trained network's weights, whose new blocks add nothing.

    A group's first block stays the first, and its others are spread evenly. The gates are freshly initialised. Raises
    UserError if the trained network has gates, or ``deeper`` is not the same network with more blocks.
    """
    if architecture.gates is not None or not architecture.grows_into(deeper):
        raise UserError(
            f"{architecture.name} does not grow into {deeper.name}: only a network without gates can, "
            "into one of the same kind with more blocks"
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
    """Return the positions that the trained network's blocks take in the deeper network."""
    groups = zip(first_blocks(deeper), blocks, deeper, strict=True)
    return [first + index * many // few for first, few, many in groups for index in range(few)]
