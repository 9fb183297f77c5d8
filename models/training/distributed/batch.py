"""The outputs of a global batch, from the shares that the processes compute.

Target rates, difficulty ranks and the baselines of HRL relate the images of a batch to each other. So each process
computes the loss of the global batch, from the outputs of all processes. Its backward pass continues at its own
outputs, and `sum_gradients` adds the gradients of all processes.
"""

from typing import Any

import torch
from torch import Tensor

from models.data.share import Share
from models.training.distributed.group import gather, share


def global_batch(rows: Tensor, repeats: int = 1) -> Tensor:
    """Return the rows [repeats * N, ...] of a global batch of N images, from this process's share of them."""
    if share().size == 1:
        return rows
    joined: Tensor = Joined.apply(rows, repeats)  # type: ignore[no-untyped-call]
    return joined


class Joined(torch.autograd.Function):
    """Join the rows of all processes. The gradient of a process is that of its own rows."""

    @staticmethod
    def forward(context: Any, rows: Tensor, repeats: int) -> Tensor:
        size, count = share().size, len(rows) // repeats * share().size
        places = torch.cat([Share(rank, size).positions(count, repeats) for rank in range(size)]).to(rows.device)
        context.own, context.repeats = share(), repeats
        gathered = gather(rows).flatten(0, 1)
        return torch.empty_like(gathered).index_copy_(0, places, gathered)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        own: Share = context.own
        return own.take(gradients[0], context.repeats), None
