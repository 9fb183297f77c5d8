"""Half precision on disk: a checkpoint half as large, where its decisions and its accuracy stay."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.engines.engine import Engine
from models.evaluation import evaluate_engine
from models.network import SkipNet

MOST_FLIPPED, MOST_LOST = 0.001, 0.001
"""Of the decisions, and of the accuracy."""


class PrecisionLost(ValueError):
    """Half precision would change what a checkpoint answers; the message says by how much."""


@dataclass(frozen=True)
class Rounding:
    """What rounding the weights changes: the share of decisions that flip, and accuracy before and after."""

    flipped: float
    accuracy: float
    rounded_accuracy: float

    def check(self) -> None:
        """Raise PrecisionLost where that is more than can pass for nothing."""
        if self.flipped > MOST_FLIPPED or self.accuracy - self.rounded_accuracy > MOST_LOST:
            raise PrecisionLost(
                f"in half precision {self.flipped:.3%} of the decisions flip and accuracy goes from "
                f"{self.accuracy:.2%} to {self.rounded_accuracy:.2%}; keep float32: leave out --half"
            )


@torch.no_grad()
def round_weights(network: SkipNet) -> SkipNet:
    """Return a copy of ``network`` with the weights that `write_checkpoint` leaves of it in half precision."""
    rounded = copy.deepcopy(network)
    for parameter in rounded.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.half().float())
    return rounded


def measure_rounding(
    engine: Engine, rounded: Engine, batches: Iterable[tuple[Tensor, Tensor]], threshold: float
) -> Rounding:
    """Return what changes between two engines, of a checkpoint and of the same one rounded."""
    batches = list(batches)
    before, after = (evaluate_engine(each, batches, threshold) for each in (engine, rounded))
    flipped = float((before.executed != after.executed).mean()) if before.executed.size else 0.0
    return Rounding(flipped, before.accuracy, after.accuracy)
