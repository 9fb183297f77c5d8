"""Define gates (SkipNet, section 3.1): small networks that read a feature map and decide on the next block.

The rule of routing: a block is executed if its gate's probability is greater than the image's execute threshold.
Threshold 0 executes every block and threshold 1 only the first. ``Limits`` converts thresholds accordingly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.blocks import conv_norm

RNN_WIDTH = 10


def average(x: Tensor) -> Tensor:
    """Return the mean [N, C] of feature maps [N, C, H, W] over height and width.

    In channels_last, height is averaged first. The gradient is then written in contiguous parts of W * C numbers
    instead of C. Sums are used, because ``mean`` copies bfloat16 maps to float32 first. Each sum is divided at once,
    because float16 sums would overflow.
    """
    _, channels, height, width = x.shape
    if not x.is_contiguous(memory_format=torch.channels_last):
        return x.mean((2, 3))
    rows = x.permute(0, 2, 3, 1).flatten(2)
    return (rows.sum(1) / height).view(-1, width, channels).sum(1) / width


class RecurrentController(nn.Module):
    """The part of the RNN gate that all blocks share: one LSTM(10, 10) and its projection to a logit.

    The state is zero at the first gate. It passes from gate to gate, also across skipped blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTMCell(RNN_WIDTH, RNN_WIDTH)
        self.projection = nn.Linear(RNN_WIDTH, 1)

    def forward(self, embedding: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the logit [N] for an embedding [N, 10], and the state for the next gate."""
        hidden, cell = self.rnn(embedding, state)
        return self.projection(hidden).squeeze(1), (hidden, cell)


class RNNGate(nn.Module):
    """The RNN gate's part for one block: an average over the feature map and an embedding in 10 dimensions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(channels, RNN_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding [N, 10] of a feature map [N, C, H, W]."""
        embedding: Tensor = self.embedding(average(x))
        return embedding


class FeedForwardGate(nn.Module):
    """FFGate-I (max pooling and two 3x3 convolutions) or FFGate-II (one strided convolution), for one block.

    The head has two outputs, skip and execute. Their difference is the logit, so that sigmoid(logit) equals the softmax
    of the execute output.
    """

    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        if variant == 1:
            features: list[nn.Module] = [
                nn.MaxPool2d(2),
                *conv_norm(channels, channels, 3),
                nn.ReLU(),
                *conv_norm(channels, channels, 3, stride=2),
                nn.ReLU(),
            ]
        else:
            features = [*conv_norm(channels, channels, 3, stride=2), nn.ReLU()]
        self.features = nn.Sequential(*features)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit [N] of a feature map [N, C, H, W]."""
        skip, execute = self.head(average(self.features(x))).unbind(1)
        return torch.sub(execute, skip)


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
        """The same limits [N], float32, for gate logits. A comparison of logits saves a sigmoid at every gate."""
        limits: Tensor = torch.special.logit(self.probabilities.double().clamp(0, 1))
        return limits.float()
