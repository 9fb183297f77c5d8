"""The statistics that batch norm uses in training: those of the batch, or the running ones of inference."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def freeze_statistics(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Make batch norm use its running statistics without updating them. Scale and shift are still trained.

    Returns the batch norms that used batch statistics until now.
    """
    norms = training_norms(module)
    for norm in norms:
        norm.eval()
    return norms


def uses_batch_statistics(module: nn.Module) -> bool:
    """Return whether a batch norm in a module uses the statistics of the batch."""
    return bool(training_norms(module))


def training_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [each for each in module.modules() if isinstance(each, nn.BatchNorm2d) and each.training]


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Freeze batch norm's statistics inside the `with` statement."""
    frozen = freeze_statistics(module)
    try:
        yield
    finally:
        for norm in frozen:
            norm.train()
