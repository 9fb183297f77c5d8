"""Apply the gates' decisions to a block of a batch, in one of three ways.

All three give the same output. They differ in the computed blocks, and in whether the host reads the decisions.
"""

from functools import partial

import torch
from torch import Tensor

from models.engines.folding import FoldedBlock
from models.engines.torch.channels_last import last_channels, take
from models.engines.torch.forward import execute, residual, shortcut

QUARTERS = (1, 2, 3, 4)


def mask(block: FoldedBlock, x: Tensor, decision: Tensor) -> Tensor:
    """Run ``block`` on all of ``x`` [N, C, H, W] and select the output by ``decision`` [N]. This saves no work."""
    skip = shortcut(block, x)
    return torch.where(decision.view(-1, 1, 1, 1), execute(block, x, skip), skip)


def compact(block: FoldedBlock, x: Tensor, decision: Tensor) -> Tensor:
    """Run ``block`` only on the images that ``decision`` executes. The host reads the decisions. Overwrites ``x``."""
    skip = shortcut(block, x)
    if len(decision) == 1:
        return execute(block, x, skip) if decision.item() else skip
    indices = decision.nonzero().squeeze(1)
    if len(indices) == 0:
        return skip
    if len(indices) == len(x):
        return execute(block, x, skip)
    before = take(skip, indices)
    after = execute(block, before if block.projection is None else take(x, indices), before)
    last_channels(skip).index_copy_(0, indices, last_channels(after))
    return skip


def bucket_sizes(count: int) -> tuple[int, ...]:
    """Return the numbers of images that a block can run on in a batch of ``count``: the quarters, rounded up."""
    return tuple(sorted({-(-count * quarter // 4) for quarter in QUARTERS}))


class BucketSkipping:
    """Run a block on the smallest bucket that holds all images that execute it, or skip the block, by ``torch.cond``.

    The choice of the bucket and its images stays on the device. In a captured CUDA graph each bucket is a conditional
    node. The largest bucket is the full batch, so every number of images fits into a bucket. Overwrites the block's
    input.

    ``ran`` [B-1, buckets] tells which buckets were computed in the last forward pass.
    """

    def __init__(self, gates: int, count: int, device: str | torch.device) -> None:
        self.buckets = bucket_sizes(count)
        self.ran = torch.zeros(gates, len(self.buckets), dtype=torch.bool, device=device)
        self.gate = 0

    def __call__(self, block: FoldedBlock, x: Tensor, decision: Tensor) -> Tensor:
        skip = shortcut(block, x)
        count = decision.sum()
        # The images that execute the block come first. Others fill the rest of the bucket.
        order = torch.argsort(decision.to(torch.int8), descending=True, stable=True)
        smaller = 0
        for index, bucket in enumerate(self.buckets):
            fits = (count > smaller) & (count <= bucket)
            operands = skip, x, decision, order, self.ran.select(0, self.gate).select(0, index)
            torch.ops.higher_order.cond(fits, partial(run_bucket, block, bucket), skip_bucket, operands)
            smaller = bucket
        self.gate = (self.gate + 1) % len(self.ran)
        return skip


def run_bucket(
    block: FoldedBlock, bucket: int, skip: Tensor, x: Tensor, decision: Tensor, order: Tensor, ran: Tensor
) -> tuple[()]:
    """Run ``block`` on the first ``bucket`` images of ``order`` and write the executed ones into ``skip``.

    This branch of ``torch.cond`` returns nothing, because a result would be copied at every decision.
    """
    ran.fill_(True)
    if len(x) == 1:
        skip.add_(residual(block, x)).relu_()
        return ()
    indices = order.narrow(0, 0, bucket)
    before = take(skip, indices)
    taken = before if block.projection is None else take(x, indices)
    after = torch.relu_(residual(block, taken).add_(before))
    chosen = torch.where(decision.index_select(0, indices).view(-1, 1, 1, 1), after, before)
    last_channels(skip).index_copy_(0, indices, last_channels(chosen))
    return ()


def skip_bucket(*operands: Tensor) -> tuple[()]:
    """Clear the flag ``ran``. The branch must not be empty: drivers before r570 can hang on it (openxla/xla#25769)."""
    operands[-1].zero_()
    return ()
