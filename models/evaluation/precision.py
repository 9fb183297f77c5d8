"""Half precision on disk: a checkpoint half as large, where its decisions and its accuracy stay."""

import copy

import torch

from models.evaluation.agreement import Agreement
from models.network import SkipNet

MOST_FLIPPED, MOST_LOST = 0.001, 0.001
"""Of the decisions, and of the accuracy."""


class PrecisionLost(ValueError):
    """Half precision would change what a checkpoint answers; the message says by how much."""


@torch.no_grad()
def round_weights(network: SkipNet) -> SkipNet:
    """Return a copy of ``network`` with the weights that `write_checkpoint` leaves of it in half precision."""
    rounded = copy.deepcopy(network)
    for parameter in rounded.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.half().float())
    return rounded


def check_rounding(agreement: Agreement) -> None:
    """Raise PrecisionLost where a rounded checkpoint answers less like the one it was than can pass for nothing.

    ``agreement`` is of the rounded one with the other as the reference.
    """
    flipped, before, after = 1 - agreement.decisions, agreement.reference_accuracy, agreement.accuracy
    if flipped > MOST_FLIPPED or before - after > MOST_LOST:
        raise PrecisionLost(
            f"in half precision {flipped:.3%} of the decisions flip and accuracy goes from {before:.2%} to "
            f"{after:.2%}; keep float32: leave out --half"
        )
