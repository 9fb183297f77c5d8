"""The gradients of a global batch, from those of the processes' shares.

The gradients are added explicitly. `torch.nn.parallel.DistributedDataParallel` would average them. It would also
replace the missing gradients of a block that no image executed by zeros. Then weight decay and momentum would change
the weights of this block.
"""

import torch
import torch.distributed as dist
from torch import nn

from models.training.distributed.group import add, exchange, share


@torch.no_grad()
def sum_gradients(network: nn.Module) -> None:
    """Replace the gradients by their sums over the processes, in one exchange.

    A weight has a gradient afterwards if it had one in any process.
    """
    if share().size == 1:
        return
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    found = torch.tensor([float(weight.grad is not None) for weight in weights]).to(weights[0].device)
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    everything = torch.cat([*(gradient.reshape(-1) for gradient in gradients), found])
    add(everything)
    *sums, found = torch.split(everything, [*(weight.numel() for weight in weights), len(weights)])
    for weight, gradient, of_all, exists in zip(weights, gradients, sums, found.tolist(), strict=True):
        weight.grad = gradient.copy_(of_all.view_as(gradient)) if exists else None


@torch.no_grad()
def copy_from_first(network: nn.Module) -> None:
    """Replace weights and statistics by those of the first process."""
    if share().size == 1:
        return
    for tensor in network.state_dict().values():
        values = tensor.contiguous()
        exchange(dist.broadcast, values, 0)
        tensor.copy_(values)
