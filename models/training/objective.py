"""What a training step answers, whatever its stage."""

from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """``loss`` to differentiate; sums over the batch of correct answers, of executed share, of executions [B-1]."""

    loss: Tensor
    correct: Tensor
    computation: Tensor
    executions: Tensor

    def sums(self, images: int) -> Tensor:
        """Return loss, correct answers, executed share and executions, summed over the images, as one [3 + B-1]."""
        totals = torch.stack((self.loss.detach() * images, self.correct, self.computation))
        return torch.cat((totals, self.executions)).double()
