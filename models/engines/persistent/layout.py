"""Convert a folded network to the streams of 16-byte words that persistent.cu reads.

Filters are in the order in which a warp's 32 lanes hold them as B fragments of mma.m16n8k16 (PTX ISA, "Matrix
Fragments for mma.m16n8k16 with floating point type"). So a thread loads its part of two fragments as 16 bytes, and a
warp loads 512 consecutive bytes.
"""

import numpy as np
from numpy.typing import NDArray

from models.engines.folding import Convolution, ConvolutionalGate, FoldedNetwork, RecurrentGate
from models.gates import RNN_WIDTH

Words = NDArray[np.uint8]
ROWS = 4 * RNN_WIDTH
WIDEST = 64
"""The channels of the last blocks."""
LANE = np.arange(32)
ROW = (LANE % 4 * 2)[:, None] + np.array([0, 1, 8, 9])
"""[32 lanes, 4]: the rows of B (input channels) that a lane holds in its two registers of two fp16 numbers."""
COLUMN = LANE // 4
"""[32 lanes]: the column of B (output channel) that a lane holds."""


def filter_streams(folded: FoldedNetwork) -> list[Words]:
    """Return four streams: the stem with the first group, the second group, the third group, and the head.

    A block is its projection, if it has one, and its two convolutions.
    """
    groups: dict[int, list[Words]] = {16: [pack_convolution(folded.stem)], 32: [], 64: []}
    for block in folded.blocks:
        convolutions = (() if block.projection is None else (block.projection,)) + block.residual
        groups[len(block.residual[-1].bias)] += [pack_convolution(convolution) for convolution in convolutions]
    classes, channels = folded.head_weight.shape
    head = np.zeros((channels + 1, -(-classes // 4) * 4), np.float32)
    head[:-1, :classes] = folded.head_weight.numpy().T / pixels(folded, len(folded.blocks) - 1)
    head[-1, :classes] = folded.head_bias.numpy()
    return [*(np.concatenate(parts) for parts in groups.values()), as_bytes(head)]


def gate_stream(folded: FoldedNetwork) -> Words:
    """Return the stream of all gates.

    RNN gates begin with their shared weights and end with room for one more gate of the widest blocks, which the kernel
    copies but does not use: it copies the next gate's weights whenever it evaluates one.
    """
    parts: list[Words] = []
    for index, gate in enumerate(folded.gates):
        if isinstance(gate, RecurrentGate):
            parts += [pack_shared(gate)] if index == 0 else []
            parts.append(pack_recurrent(gate, pixels(folded, index)))
            continue
        assert isinstance(gate, ConvolutionalGate), "`suits` passes no other gates"
        parts += [pack_convolution(convolution) for convolution in gate.convolutions]
        averaged = pixels(folded, index) // (16 if gate.pools else 4)
        parts.append(as_bytes(np.append(gate.weight.numpy() / averaged, [gate.bias, 0, 0, 0])))
    if parts and isinstance(folded.gates[0], RecurrentGate):
        parts.append(np.zeros(ROWS * (WIDEST + 1) * 4, np.uint8))
    return np.concatenate(parts) if parts else np.zeros(16, np.uint8)


def pixels(folded: FoldedNetwork, index: int) -> int:
    """Return the number of pixels of a block's output, which follows from its channels."""
    return (32 * 16 // len(folded.blocks[index].residual[-1].bias)) ** 2


def pack_convolution(convolution: Convolution) -> Words:
    """Return filters [chunk of 16 inputs, column, row, pair of 8 outputs, lane, 8] in fp16, then biases in fp32."""
    weight = convolution.weight.numpy()
    outputs, inputs, height, width = weight.shape
    padded = -(-inputs // 16) * 16
    weight = np.pad(weight, ((0, 0), (0, padded - inputs), (0, 0), (0, 0)))
    split = weight.reshape(outputs // 16, 2, 8, padded // 16, 16, height, width)
    lanes = split[:, :, COLUMN[:, None], :, ROW]  # [lane, 4, pair, half, chunk, row, column]
    ordered = lanes.transpose(4, 6, 5, 2, 0, 3, 1)
    return np.concatenate([as_bytes(ordered.astype(np.float16)), as_bytes(convolution.bias.numpy())])


def pack_shared(gate: RecurrentGate) -> Words:
    """Return recurrent weights [12 units, the last two zero, 40], the readout [10], its bias and nine zeros."""
    recurrent = np.pad(gate.recurrent.numpy().T, ((0, 2), (0, 0)))
    readout = np.append(gate.readout.numpy(), [gate.readout_bias, *[0] * 9])
    return np.concatenate([as_bytes(recurrent), as_bytes(readout)])


def pack_recurrent(gate: RecurrentGate, averaged: int) -> Words:
    """Return weights [C / 16, 40 rows x 4 threads, 4] and biases [40]. Thread i has channels i, i + 4, i + 8, ..."""
    weight = gate.weight.numpy().reshape(ROWS, -1, 4, 4) / averaged
    return np.concatenate([as_bytes(weight.transpose(1, 0, 3, 2)), as_bytes(gate.bias.numpy())])


def as_bytes(numbers: NDArray[np.floating]) -> Words:
    kept = numbers if numbers.dtype == np.float16 else numbers.astype(np.float32)
    return np.ascontiguousarray(kept).reshape(-1).view(np.uint8)
