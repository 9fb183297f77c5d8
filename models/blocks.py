"""Define residual blocks (He et al. 2016), which the gates execute or skip."""

import torch
from torch import Tensor, nn


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a convolution and its batch norm. At stride 1 the output has the input's height and width."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


class Block(nn.Module):
    """One residual block: ``relu(residual(x) + shortcut(x))``.

    A skipped block does not compute ``residual``. ``shortcut`` is the identity, or a projection (1x1 convolution and
    batch norm) if the stride or the width changes. It is computed for skipped blocks too.
    """

    layers: int
    expansion: int

    def __init__(self, residual: nn.Sequential, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1, stride))

    @property
    def projects(self) -> bool:
        """Return whether the shortcut is a projection."""
        return not isinstance(self.shortcut, nn.Identity)

    def execute(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """Return the executed block's output for input ``x`` [N, C, H, W], given ``shortcut(x)``."""
        return torch.relu(self.residual(x) + shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return self.execute(x, self.shortcut(x))


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    layers = 2
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        residual = nn.Sequential(
            *conv_norm(inputs, width, 3, stride),
            nn.ReLU(),
            *conv_norm(width, width, 3),
        )
        super().__init__(residual, inputs, width, stride)


class BottleneckBlock(Block):
    """A 1x1 convolution, a 3x3 one with the stride, and a 1x1 one that multiplies the width by four."""

    layers = 3
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        outputs = width * self.expansion
        residual = nn.Sequential(
            *conv_norm(inputs, width, 1),
            nn.ReLU(),
            *conv_norm(width, width, 3, stride),
            nn.ReLU(),
            *conv_norm(width, outputs, 1),
        )
        super().__init__(residual, inputs, outputs, stride)
