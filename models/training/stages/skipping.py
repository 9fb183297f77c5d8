"""Blocks that really skip while they train: each computes just the images that execute it, and in SP a few more.

The gradient of a hard decision (paper, equation 3) needs the block's output for the images that skip it too, but
nothing flows back through that output. It is computed forward only, at batch norm's running statistics as inference
would, for a share of them, drawn at random and weighted in return: the same gradient in the mean. REINFORCE needs none.
"""

from typing import Any

import torch
from torch import Tensor

from models.blocks import Block
from models.engines.torch.channels_last import last_channels, take
from models.training.stages.batch_norm import running_statistics

EXPLORED = 0.25
"""The share of the images that skip a block for which SP computes it all the same."""


def run_executed(block: Block, x: Tensor, decision: Tensor) -> Tensor:
    """Return the block's output for images [N, C, H, W], computed only where ``decision`` [N] is true."""
    executed = decision.nonzero().squeeze(1)
    if len(executed) == len(x):
        return block.execute(x, block.shortcut(x))
    return run_parts(block, x, decision, executed, executed[:0], 1.0)


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
    explored = (~executes & (drawn < share)).nonzero().squeeze(1)
    return run_parts(block, x, decision, executes.nonzero().squeeze(1), explored, share)


def run_parts(block: Block, x: Tensor, decision: Tensor, executed: Tensor, explored: Tensor, share: float) -> Tensor:
    """Compute the block for images ``executed``, and what it would give for ``explored``, which stand for ``share``."""
    shortcut: Tensor = block.shortcut(x)
    if len(executed) + len(explored) == 0:
        return shortcut
    beside, kept = Part.apply(shortcut, executed)  # type: ignore[no-untyped-call]
    chosen = take(x, executed) if block.projects else beside
    computed = block.execute(chosen, beside) if len(executed) else beside
    missed = explore(block, x, shortcut, explored)
    outputs: Tensor = Join.apply(kept, computed, beside, decision, executed, explored, missed, share)  # type: ignore[no-untyped-call]
    return outputs


@torch.no_grad()
def explore(block: Block, x: Tensor, shortcut: Tensor, explored: Tensor) -> Tensor:
    """Return what executing the block would change in the outputs of the images ``explored``, which skip it."""
    beside = take(shortcut, explored)
    if len(explored) == 0:
        return beside
    with running_statistics(block.residual):
        return block.execute(take(x, explored) if block.projects else beside, beside) - beside


class Part(torch.autograd.Function):
    """Of shortcuts [N, C, H, W], those of the images that execute a block, and all, for `Join`."""

    @staticmethod
    def forward(context: Any, x: Tensor, executed: Tensor) -> tuple[Tensor, Tensor]:
        context.save_for_backward(executed)
        return take(x, executed), x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # An average's gradient is spread over the map without memory of its own.
        of_executed, of_all = last_channels(gradients[0]), last_channels(gradients[1]).contiguous()
        (executed,) = context.saved_tensors
        # Join overwrote the executed images, so that what the gradient says of them is void. Nobody else holds it.
        return of_all.index_copy_(0, executed, of_executed).permute(0, 3, 1, 2), None


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
        computed, beside = context.saved_tensors
        return gradient, None, gain(gradient, computed - beside)


class Join(torch.autograd.Function):
    """All images, with those that executed a block replaced by its outputs."""

    @staticmethod
    def forward(
        context: Any,
        kept: Tensor,
        computed: Tensor,
        beside: Tensor,
        decision: Tensor,
        executed: Tensor,
        explored: Tensor,
        missed: Tensor,
        share: float,
    ) -> Tensor:
        context.save_for_backward(executed, *((explored, computed, beside, missed) if decision.requires_grad else ()))
        context.share = share
        return last_channels(kept).index_copy(0, executed, last_channels(computed)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        executed, *outputs = context.saved_tensors
        of_executed = take(gradient, executed)
        of_decision = None
        if outputs:
            explored, computed, beside, missed = outputs
            of_decision = torch.zeros(len(gradient), device=gradient.device)
            of_decision[executed] = gain(of_executed, computed - beside)
            of_decision[explored] = gain(take(gradient, explored), missed) / context.share
        return gradient, of_executed, None, of_decision, None, None, None, None


def gain(gradient: Tensor, difference: Tensor) -> Tensor:
    """Return the gradient float32 [N] of the decision for an image's output, given what executing the block changes."""
    # By rows first: a sum of bfloat16 that is asked for in float32 copies all of it to float32.
    products = last_channels(gradient * difference).flatten(2)
    return products.sum(2).sum(1, dtype=torch.float32)
