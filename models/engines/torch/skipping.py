"""Three ways to apply a gate's decisions to a block inside a batch: they differ in what is computed and in who has
to know the decisions, never in the answer.
"""

from functools import partial

import torch
from torch import Tensor

from models.engines.folding import FoldedBlock
from models.engines.torch.channels_last import last_channels, take
from models.engines.torch.forward import execute, residual, shortcut

QUARTERS = (1, 2, 3, 4)


def mask(block: FoldedBlock, x: Tensor, decision: Tensor) -> Tensor:
    """Run ``block`` on all of ``x`` [N, C, H, W] and choose by ``decision`` [N]: nobody waits, nothing is saved."""
    skip = shortcut(block, x)
    return torch.where(decision.view(-1, 1, 1, 1), execute(block, x, skip), skip)


def compact(block: FoldedBlock, x: Tensor, decision: Tensor) -> Tensor:
    """Run ``block`` on just the images that ``decision`` executes; the host reads the decisions. Writes to ``x``."""
    skip = shortcut(block, x)
    if len(decision) == 1:
        return execute(block, x, skip) if decision.item() else skip
    rows = decision.nonzero().squeeze(1)
    if len(rows) == 0:
        return skip
    if len(rows) == len(x):
        return execute(block, x, skip)
    before = take(skip, rows)
    after = execute(block, before if block.projection is None else take(x, rows), before)
    last_channels(skip).index_copy_(0, rows, last_channels(after))
    return skip


def buckets(images: int) -> tuple[int, ...]:
    """Return the numbers of images that a block can run on inside a batch: its quarters, rounded up."""
    return tuple(sorted({-(-images * quarter // 4) for quarter in QUARTERS}))


class OnDevice:
    """Runs a block on the smallest bucket that holds the images that execute it, or not at all, by ``torch.cond``.

    Which bucket it is, and which images are in it, stays on the device. Captured in a CUDA graph, each bucket is a
    conditional node; a bucket that would overflow is not taken, and the next larger one is. The last is the whole
    batch, so that every number of images has its bucket. Writes to the block's input.

    ``ran`` [B-1, buckets] tells which buckets were computed in the last forward pass.
    """

    def __init__(self, gates: int, images: int, device: str | torch.device) -> None:
        self.buckets = buckets(images)
        self.ran = torch.zeros(gates, len(self.buckets), dtype=torch.bool, device=device)
        self.gate = 0

    def __call__(self, block: FoldedBlock, x: Tensor, decision: Tensor) -> Tensor:
        skip = shortcut(block, x)
        count = decision.sum()
        # The images that execute the block come first; the rest fills the bucket up.
        order = torch.argsort(decision.to(torch.int8), descending=True, stable=True)
        smaller = 0
        for index, bucket in enumerate(self.buckets):
            fits = (count > smaller) & (count <= bucket)
            operands = skip, x, decision, order, self.ran.select(0, self.gate).select(0, index)
            torch.ops.higher_order.cond(fits, partial(run_bucket, block, bucket), leave_out, operands)
            smaller = bucket
        self.gate = (self.gate + 1) % len(self.ran)
        return skip


def run_bucket(
    block: FoldedBlock, bucket: int, skip: Tensor, x: Tensor, decision: Tensor, order: Tensor, ran: Tensor
) -> tuple[()]:
    """Run ``block`` on the first ``bucket`` images of ``order`` and write what is due into ``skip``.

    A branch of ``torch.cond`` without a result: one would be copied, decision by decision.
    """
    ran.fill_(True)
    if len(x) == 1:
        skip.add_(residual(block, x)).relu_()
        return ()
    rows = order.narrow(0, 0, bucket)
    before = take(skip, rows)
    taken = before if block.projection is None else take(x, rows)
    after = torch.relu_(residual(block, taken).add_(before))
    chosen = torch.where(decision.index_select(0, rows).view(-1, 1, 1, 1), after, before)
    last_channels(skip).index_copy_(0, rows, last_channels(chosen))
    return ()


def leave_out(*operands: Tensor) -> tuple[()]:
    """The other branch: it must hold some work, as drivers before r570 can hang on an empty one (openxla/xla#25769)."""
    operands[-1].zero_()
    return ()
