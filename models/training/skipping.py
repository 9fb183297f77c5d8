"""Blocks that really skip while they train: each computes just the images that execute it, and in SP a few more.

The gradient of a hard decision (paper, equation 3) needs the block's output for the images that skip it too, but
nothing flows back through that output. A share of them, drawn at random and weighted in return, gives the same
gradient in the mean; batch norm's statistics are those of the images that are computed. REINFORCE needs none.
"""

from typing import Any

import torch
from torch import Tensor

from models.blocks import Block

EXPLORED = 0.25
"""The share of the images that skip a block for which SP computes it all the same. Measured on `adaptive`, an epoch
takes 203 seconds of a core in place of 291, and ends with the same accuracy and computation (docs/training.md)."""


def run_executed(block: Block, x: Tensor, decision: Tensor) -> Tensor:
    """Return the block's output for images [N, C, H, W], computed only where ``decision`` [N] is true."""
    active = decision.nonzero().squeeze(1)
    if len(active) == len(x):
        return block.execute(x, block.shortcut(x))
    return run_active(block, x, active, len(active), decision, 1.0)


def run_explored(block: Block, x: Tensor, decision: Tensor, random: torch.Generator, share: float = EXPLORED) -> Tensor:
    """Return the block's output for images [N, C, H, W], computed where ``decision`` [N] is 1 and, for the decision's
    gradient, for a ``share`` of the others.
    """
    executes = decision > 0.5
    if executes.all():
        beside = block.shortcut(x)
        outputs: Tensor = Executed.apply(block.execute(x, beside), beside, decision)  # type: ignore[no-untyped-call]
        return outputs
    drawn = torch.rand(len(x), generator=random).to(x.device)
    executed, explored = executes.nonzero().squeeze(1), (~executes & (drawn < share)).nonzero().squeeze(1)
    return run_active(block, x, torch.cat((executed, explored)), len(executed), decision, share)


def run_active(block: Block, x: Tensor, active: Tensor, executed: int, decision: Tensor, share: float) -> Tensor:
    """Compute images ``active``, of which the first ``executed`` execute the block; the others stand for ``share``."""
    shortcut: Tensor = block.shortcut(x)
    if len(active) == 0:
        return shortcut
    beside, kept = Part.apply(shortcut, active, executed)  # type: ignore[no-untyped-call]
    chosen = take(x, active) if block.projects else beside
    computed = block.execute(chosen, beside)
    outputs: Tensor = Join.apply(kept, computed, beside, decision, active, executed, share)  # type: ignore[no-untyped-call]
    return outputs


def take(x: Tensor, active: Tensor) -> Tensor:
    """Return the images ``active`` of [N, C, H, W]; in channels_last, an image is one run of memory, and stays so."""
    return rows(x).index_select(0, active).permute(0, 3, 1, 2)


def rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


class Part(torch.autograd.Function):
    """Of shortcuts [N, C, H, W], those of the images that a block computes, and all, for `Join`."""

    @staticmethod
    def forward(context: Any, x: Tensor, active: Tensor, executed: int) -> tuple[Tensor, Tensor]:
        context.save_for_backward(active)
        context.executed = executed
        return take(x, active), x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # An average's gradient is spread over the map without memory of its own.
        of_computed, of_all = rows(gradients[0]), rows(gradients[1]).contiguous()
        (active,) = context.saved_tensors
        executed = context.executed
        # Join overwrote the executed images, so that what the gradient says of them is void. Nobody else holds it.
        of_all.index_copy_(0, active[:executed], of_computed[:executed])
        of_all.index_add_(0, active[executed:], of_computed[executed:])
        return of_all.permute(0, 3, 1, 2), None, None


class Executed(torch.autograd.Function):
    """The outputs of a block that every image executes: as computed, and the decisions' gradient."""

    @staticmethod
    def forward(context: Any, computed: Tensor, beside: Tensor, decision: Tensor) -> Tensor:
        del decision
        context.save_for_backward(computed, beside)
        return computed.view_as(computed)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        (gradient,) = gradients
        return gradient, None, gain(gradient, *context.saved_tensors)


class Join(torch.autograd.Function):
    """All images, with those that executed a block replaced by its outputs."""

    @staticmethod
    def forward(
        context: Any,
        kept: Tensor,
        computed: Tensor,
        beside: Tensor,
        decision: Tensor,
        active: Tensor,
        executed: int,
        share: float,
    ) -> Tensor:
        context.save_for_backward(active, *((computed, beside) if decision.requires_grad else ()))
        context.executed, context.share = executed, share
        return rows(kept).index_copy(0, active[:executed], rows(computed)[:executed]).permute(0, 3, 1, 2)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        active, *outputs = context.saved_tensors
        of_computed = take(gradient, active)
        of_decision = None
        if outputs:
            of_active = gain(of_computed, *outputs)
            of_active[context.executed :] /= context.share
            of_decision = of_active.new_zeros(len(gradient)).index_copy_(0, active, of_active)
        of_computed[context.executed :] = 0
        return gradient, of_computed, None, of_decision, None, None, None


def gain(gradient: Tensor, computed: Tensor, beside: Tensor) -> Tensor:
    """Return the gradient [N] of the decision between a block's outputs and its shortcuts."""
    return (gradient * (computed - beside)).sum((1, 2, 3), dtype=torch.float32)
