"""A deeper network grown from a trained one: the same function at first, with blocks more to learn with.

Net2Net (Chen et al. 2016) for residual networks: a block whose last batch norm scales by zero adds nothing, and the
ReLU behind it leaves what a ReLU gave as it was. So the grown network answers as the one that it was grown from, and
its gates may skip the new blocks from the first step on without loss.
"""

from itertools import accumulate

import torch
from torch import nn

from models.network import SkipNet


class CannotGrow(ValueError):
    """The network is not one that the other could have grown from."""


@torch.no_grad()
def grow(trained: SkipNet, blocks: tuple[int, ...], into: SkipNet, into_blocks: tuple[int, ...]) -> None:
    """Give a fresh network the weights of a trained one of fewer blocks, and make its other blocks add nothing.

    ``blocks`` and ``into_blocks`` count each group's. A group's first block stays its first, the others are spread
    evenly. ``into`` may have gates, which stay as they were made; raises CannotGrow where ``trained`` has some, or
    where a group would lose blocks.
    """
    if trained.gate_kind is not None:
        raise CannotGrow("a network with gates does not grow: take one without them")
    if len(blocks) != len(into_blocks) or any(few > many for few, many in zip(blocks, into_blocks, strict=True)):
        raise CannotGrow(f"groups of {blocks} blocks don't grow into groups of {into_blocks}")
    into.stem.load_state_dict(trained.stem.state_dict())
    into.head.load_state_dict(trained.head.state_dict())
    kept = dict(zip(places(blocks, into_blocks), trained.blocks, strict=True))
    for place, block in enumerate(into.blocks):
        if place in kept:
            block.load_state_dict(kept[place].state_dict())
        else:
            last = block.residual[-1]  # type: ignore[index]
            assert isinstance(last, nn.BatchNorm2d)
            last.weight.zero_()


def places(blocks: tuple[int, ...], into_blocks: tuple[int, ...]) -> list[int]:
    """Return where in the deeper network the blocks of the other stand."""
    begins = accumulate(into_blocks, initial=0)
    return [
        begin + index * many // few
        for begin, few, many in zip(begins, blocks, into_blocks, strict=False)
        for index in range(few)
    ]
