"""The statistics that batch norm uses in training: those of the batch, or the running ones of inference."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def freeze_statistics(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Let batch norm use its running statistics without updating them; scale and shift are still trained.

    Return the batch norms that used the statistics of the batch before.
    """
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d) and each.training]
    for norm in norms:
        norm.eval()
    return norms


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Freeze the statistics of batch norm inside the `with` statement."""
    frozen = freeze_statistics(module)
    try:
        yield
    finally:
        for norm in frozen:
            norm.train()
