"""Convert a folded network to the two flat arrays that native.cpp reads."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.engines.folding import Convolution, ConvolutionalGate, FoldedBlock, FoldedNetwork, RecurrentGate
from models.engines.protocol import EngineError
from models.gates import RNN_WIDTH

ActivationLimits = tuple[tuple[float, ...], ...]
"""For each block, the largest magnitudes of the inputs of its residual convolutions."""
UNITS = 16
"""The LSTM's 10 units, padded with zeros to whole vector registers. gates.hpp has the same constant."""
MOST_GATE_CONVOLUTIONS = 8
"""The number of roles that native.cpp has for the feature maps of a gate."""


class Layout:
    """A network's ``integers`` (its shapes) and ``numbers`` (its weights), in the order of native.cpp's read functions.

    Raises EngineError for a network that native.cpp has no code for.
    """

    def __init__(self, folded: FoldedNetwork, limits: ActivationLimits | None = None) -> None:
        self.integers: list[int] = []
        self.numbers: list[NDArray[np.float32]] = []
        require(folded.stem.weight.shape[1] == 3, "a stem that does not read three channels")
        channels = self.convolution(folded.stem, 3, widest_kernel=7)
        self.integers += [folded.stem_pools, len(folded.blocks)]
        limits = limits or tuple((0.0,) * len(block.residual) for block in folded.blocks)
        counts = [len(block.residual) for block in folded.blocks]
        require(
            [len(inputs) for inputs in limits] == counts, "these activation limits: they are those of another network"
        )
        widths = [
            channels := self.block(block, channels, inputs) for block, inputs in zip(folded.blocks, limits, strict=True)
        ]
        self.gates(folded, widths)
        classes, features = folded.head_weight.shape
        require(features == channels, "a head that does not fit the last block")
        self.integers += [features, classes]
        self.append(folded.head_weight.T, folded.head_bias)

    def block(self, block: FoldedBlock, channels: int, limits: tuple[float, ...]) -> int:
        """Append a block that reads ``channels``, and return the number of channels that it writes.

        ``limits`` are the largest magnitudes of the inputs of its residual convolutions, or 0 for a block in float32.
        """
        projection = () if block.projection is None else (block.projection,)
        self.integers.append(math.gcd(*(size for each in block.residual for size in each.weight.shape[:2])))
        written = self.convolutions(block.residual, channels, limits)
        shortcut = self.convolutions(projection, channels, limits[:1])
        strides = [int(np.prod([each.stride for each in path])) for path in (block.residual, projection)]
        require(len(block.residual) > 0, "a block without convolutions")
        require(shortcut == written and strides[0] == strides[1], "a block whose shortcut does not fit its output")
        return written

    def gates(self, folded: FoldedNetwork, widths: list[int]) -> None:
        """Append the gates. ``widths`` are the channels that the blocks write, which the gates read."""
        kinds = {type(gate) for gate in folded.gates}
        require(kinds in (set(), {RecurrentGate}, {ConvolutionalGate}), "gates of this kind")
        require(
            len(folded.gates) in (0, len(widths) - 1), "a number of gates other than the number of blocks minus one"
        )
        counts = [len(folded.gates) if kind in kinds else 0 for kind in (RecurrentGate, ConvolutionalGate)]
        self.integers += counts
        for gate, channels in zip(folded.gates, widths, strict=False):
            if isinstance(gate, RecurrentGate):
                self.recurrent_gate(gate, channels)
            elif isinstance(gate, ConvolutionalGate):
                self.convolutional_gate(gate, channels)

    def convolutions(self, convolutions: tuple[Convolution, ...], channels: int, limits: tuple[float, ...] = ()) -> int:
        self.integers.append(len(convolutions))
        for convolution, limit in zip(convolutions, limits or (0.0,) * len(convolutions), strict=False):
            channels = self.convolution(convolution, channels, limit=limit)
        return channels

    def convolution(self, convolution: Convolution, channels: int, widest_kernel: int = 3, limit: float = 0.0) -> int:
        """Append a convolution that reads ``channels``, and return the number of channels that it writes."""
        outputs, inputs, kernel, width = convolution.weight.shape
        square = kernel == width and kernel % 2 == 1 and kernel <= widest_kernel
        stride = convolution.stride
        require(square and stride in (1, 2), f"a {kernel}x{width} convolution of stride {stride}")
        require(inputs == channels, f"a convolution of {inputs} channels on a map of {channels}")
        self.integers += [inputs, outputs, kernel, stride]
        self.append(torch.tensor([limit]), convolution.weight, convolution.bias)
        return outputs

    def recurrent_gate(self, gate: RecurrentGate, channels: int) -> None:
        shapes = (tuple(gate.weight.shape), tuple(gate.recurrent.shape))
        require(shapes == ((4 * RNN_WIDTH, channels), (4 * RNN_WIDTH, RNN_WIDTH)), "a recurrent gate of this size")
        self.integers.append(channels)
        unused = UNITS - RNN_WIDTH
        recurrent = torch.nn.functional.pad(pad_parts(gate.recurrent), (0, 0, 0, unused))
        readout = torch.nn.functional.pad(gate.readout, (0, unused))
        self.append(pad_parts(gate.weight), pad_parts(gate.bias[:, None]), recurrent, readout)
        self.append(torch.tensor([gate.readout_bias]))

    def convolutional_gate(self, gate: ConvolutionalGate, channels: int) -> None:
        count = len(gate.convolutions)
        require(0 < count <= MOST_GATE_CONVOLUTIONS, f"a gate of {count} convolutions")
        self.integers.append(gate.pools)
        averaged = self.convolutions(gate.convolutions, channels)
        require(tuple(gate.weight.shape) == (averaged,), "a gate whose linear layer does not fit its convolutions")
        self.append(gate.weight, torch.tensor([gate.bias]))

    def append(self, *tensors: Tensor) -> None:
        self.numbers += [tensor.detach().to(torch.float32).reshape(-1).numpy() for tensor in tensors]


def require(supported: bool, what: str) -> None:
    """Raise EngineError for ``what`` if native.cpp does not support it. It would read beyond its arrays."""
    if not supported:
        raise EngineError(f"the native engine has no code for {what}; choose the engine torch")


def pad_parts(weight: Tensor) -> Tensor:
    """Return LSTM weights [40, C] as [C, 64]: each of the four parts is padded from 10 units to 16."""
    parts = weight.reshape(4, RNN_WIDTH, -1)
    return torch.nn.functional.pad(parts, (0, 0, 0, UNITS - RNN_WIDTH)).reshape(4 * UNITS, -1).T
