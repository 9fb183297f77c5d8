"""Round the weights of a checkpoint to half precision, if that keeps its decisions and its accuracy."""

import copy

import torch

from models.errors import UserError
from models.evaluation.agreement import Agreement
from models.network import SkipNet

MOST_FLIPPED, MOST_LOST = 0.001, 0.001
"""The largest share of flipped decisions and the largest loss of accuracy."""


@torch.no_grad()
def round_weights(network: SkipNet) -> SkipNet:
    """Return a copy of ``network`` with the weights that `write_checkpoint` would store in half precision."""
    rounded = copy.deepcopy(network)
    for parameter in rounded.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.half().float())
    return rounded


def check_rounding(agreement: Agreement) -> None:
    """Raise UserError if rounding changes too many decisions or loses too much accuracy.

    ``agreement`` compares the rounded checkpoint with the original as the reference.
    """
    flipped, before, after = 1 - agreement.decisions, agreement.reference_accuracy, agreement.accuracy
    if flipped > MOST_FLIPPED or before - after > MOST_LOST:
        raise UserError(
            f"in half precision {flipped:.3%} of the decisions flip and accuracy goes from {before:.2%} to "
            f"{after:.2%}; keep float32: leave out --half"
        )
