"""Blocks that compute only the images that execute them, in training too.

In SP, the gradient of a hard decision (paper, equation 3) also needs the block's output for the images that skip it.
No gradient flows back through that output. So it is computed forward only, with batch norm's running statistics, and
only for a random share of these images. Their gradient is divided by the share, so its expectation is the same.
REINFORCE does not need these outputs.
"""

from typing import Any

import torch
from torch import Tensor

from models.blocks import Block
from models.engines.torch.channels_last import last_channels, take
from models.training.distributed.group import share as share_of_batch
from models.training.distributed.group import total
from models.training.stages.batch_norm import running_statistics, uses_batch_statistics

EXPLORED = 0.25
"""SP computes the block also for this share of the images that skip it."""


def run_executed(block: Block, x: Tensor, decision: Tensor) -> Tensor:
    """Return the block's output for images [N, C, H, W], computed only where ``decision`` [N] is true."""
    executed = decision.nonzero().squeeze(1)
    everywhere = total(len(executed))
    if len(executed) == len(x):
        return block.execute(x, block.shortcut(x))
    return run_parts(block, x, decision, executed, executed[:0], 1.0, everywhere)


def run_explored(block: Block, x: Tensor, decision: Tensor, random: torch.Generator, share: float = EXPLORED) -> Tensor:
    """Return the block's output for images [N, C, H, W], computed only where ``decision`` [N] is 1.

    For the gradient of the decision, the block is computed for a random ``share`` of the other images too.
    """
    executes = decision > 0.5
    everywhere, images = total(int(executes.sum())), len(x) * share_of_batch().size
    # Drawn for the global batch, and only if an image of it skips the block, as in one process.
    drawn = None if everywhere == images else share_of_batch().take(torch.rand(images, generator=random)).to(x.device)
    if executes.all():
        identity = block.shortcut(x)
        outputs: Tensor = Executed.apply(block.execute(x, identity), identity, decision)  # type: ignore[no-untyped-call]
        return outputs
    assert drawn is not None
    explored = (~executes & (drawn < share)).nonzero().squeeze(1)
    return run_parts(block, x, decision, executes.nonzero().squeeze(1), explored, share, everywhere)


def run_parts(
    block: Block, x: Tensor, decision: Tensor, executed: Tensor, explored: Tensor, share: float, everywhere: int
) -> Tensor:
    """Return the block's output, computed for the images ``executed``. The others keep the shortcut.

    ``executed`` and ``explored`` are indices into the batch. The explored images are a ``share`` of those that skip.
    ``everywhere`` is the number of images that execute the block in all processes. If the processes share batch norm's
    statistics, every process runs the block, even for no image.
    """
    shortcut: Tensor = block.shortcut(x)
    executes = everywhere > 0 if uses_batch_statistics(block.residual) else len(executed) > 0
    if not executes and len(explored) == 0:
        return shortcut
    identity, kept = Part.apply(shortcut, executed)  # type: ignore[no-untyped-call]
    chosen = take(x, executed) if block.projects else identity
    computed = block.execute(chosen, identity) if executes else identity
    missed = explore(block, x, shortcut, explored)
    outputs: Tensor = Join.apply(kept, computed, identity, decision, executed, explored, missed, share)  # type: ignore[no-untyped-call]
    return outputs


@torch.no_grad()
def explore(block: Block, x: Tensor, shortcut: Tensor, explored: Tensor) -> Tensor:
    """Return the change of the output if the block ran for the images ``explored``, which skip it."""
    identity = take(shortcut, explored)
    if len(explored) == 0:
        return identity
    with running_statistics(block.residual):
        return block.execute(take(x, explored) if block.projects else identity, identity) - identity


class Part(torch.autograd.Function):
    """Return the shortcuts of the images that execute a block, and all shortcuts [N, C, H, W], for `Join`."""

    @staticmethod
    def forward(context: Any, x: Tensor, executed: Tensor) -> tuple[Tensor, Tensor]:
        context.save_for_backward(executed)
        return take(x, executed), x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # The gradient of an average is an expanded view without its own memory, so it is copied.
        of_executed, of_all = last_channels(gradients[0]), last_channels(gradients[1]).contiguous()
        (executed,) = context.saved_tensors
        # Join replaced the executed images, so their gradient here is zero. No other tensor shares this memory.
        return of_all.index_copy_(0, executed, of_executed).permute(0, 3, 1, 2), None


class Executed(torch.autograd.Function):
    """Return the outputs of a block that every image executes, and propagate the gradient of the decisions."""

    @staticmethod
    def forward(context: Any, computed: Tensor, identity: Tensor, decision: Tensor) -> Tensor:
        del decision
        context.save_for_backward(computed, identity)
        return computed.view_as(computed)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        (gradient,) = gradients
        computed, identity = context.saved_tensors
        return gradient, None, gain(gradient, computed - identity)


class Join(torch.autograd.Function):
    """Return all images, with the outputs of the block for those that executed it."""

    @staticmethod
    def forward(
        context: Any,
        kept: Tensor,
        computed: Tensor,
        identity: Tensor,
        decision: Tensor,
        executed: Tensor,
        explored: Tensor,
        missed: Tensor,
        share: float,
    ) -> Tensor:
        context.save_for_backward(executed, *((explored, computed, identity, missed) if decision.requires_grad else ()))
        context.share = share
        return last_channels(kept).index_copy(0, executed, last_channels(computed)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        executed, *outputs = context.saved_tensors
        of_executed = take(gradient, executed)
        of_decision = None
        if outputs:
            explored, computed, identity, missed = outputs
            of_decision = torch.zeros(len(gradient), device=gradient.device)
            of_decision[executed] = gain(of_executed, computed - identity)
            of_decision[explored] = gain(take(gradient, explored), missed) / context.share
        return gradient, of_executed, None, of_decision, None, None, None, None


def gain(gradient: Tensor, difference: Tensor) -> Tensor:
    """Return the gradient of the decisions, float32 [N].

    ``gradient`` is the gradient of the outputs, and ``difference`` the change that the block causes. Both are [N, C, H,
    W].
    """
    # Sum the pixels first: a bfloat16 sum with a float32 result copies its complete input to float32.
    products = last_channels(gradient * difference).flatten(2)
    return products.sum(2).sum(1, dtype=torch.float32)
