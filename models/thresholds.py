"""Convert execute thresholds to what an engine compares its gates with.

The rule of routing: a block is executed if its gate's probability is greater than the image's execute threshold.
Threshold 0 executes every block and threshold 1 only the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Limits:
    """The limits that a batch's gates must exceed for a block to be executed.

    ``probabilities`` [N], float32: -inf for a threshold of 0 or less, because a sigmoid can round to exactly 0.
    No probability exceeds 1, so larger thresholds need no change.
    """

    probabilities: Tensor

    @classmethod
    def of(cls, thresholds: Tensor | NDArray[np.float32] | float) -> Limits:
        """Return the limits of execute thresholds [N]. A tensor's limits stay on its device."""
        values = thresholds if isinstance(thresholds, Tensor) else torch.tensor(thresholds)
        values = values.float()
        return cls(values.masked_fill(values <= 0, -torch.inf))

    @property
    def logits(self) -> Tensor:
        """The same limits [N], float32, for gate logits. Comparing logits saves a sigmoid at every gate."""
        limits: Tensor = torch.special.logit(self.probabilities.double().clamp(0, 1))
        return limits.float()
