"""What a training step answers, whatever its stage."""

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """``loss`` to differentiate; sums over the batch of correct answers, of executed share, of executions [B-1]."""

    loss: Tensor
    correct: Tensor
    computation: Tensor
    executions: Tensor
