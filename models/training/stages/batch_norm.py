"""Whose statistics batch norm uses while a network trains: its batch's, or the running ones of inference."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def freeze_statistics(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Let batch norm use its running statistics and leave them as they are; its scale and shift still learn.

    Returns those that did not before.
    """
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d) and each.training]
    for norm in norms:
        norm.eval()
    return norms


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Freeze the statistics for as long as the `with` statement lasts."""
    frozen = freeze_statistics(module)
    try:
        yield
    finally:
        for norm in frozen:
            norm.train()
