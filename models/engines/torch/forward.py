"""Run the forward pass of a folded network in torch, for every engine that uses torch.

The caller chooses how decisions are applied to a block: see ``skipping``.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.engines.folding import Convolution, FoldedBlock, FoldedNetwork, Gate, LayeredGate, RecurrentGate

Apply = Callable[[FoldedBlock, Tensor, Tensor], Tensor]
"""Maps a block, its input [N, C, H, W] and decisions [N] to its output [N, C', H', W']. May overwrite the input."""
State = tuple[Tensor, Tensor] | None
Part = TypeVar("Part")


def forward(network: FoldedNetwork, images: Tensor, limits: Tensor, apply: Apply) -> tuple[Tensor, Tensor]:
    """Return class logits [N, classes] and gate logits [N, B-1], both float32. A plain ResNet has no gate logits.

    ``images`` [N, 3, H, W] have the precision of the network's convolutions. A block is executed if its gate's logit
    is greater than the image's limit in ``limits`` [N], float32. Averages, recurrent gates and the head are float32
    in any precision, because decisions depend on them.
    """
    x = torch.relu_(convolve(images, network.stem))
    if network.stem_pools:
        x = functional.max_pool2d(x, 3, 2, 1)
    x = execute(network.blocks[0], x, shortcut(network.blocks[0], x))
    logits: list[Tensor] = []
    state: State = None
    if not network.gates:
        for block in network.blocks[1:]:
            x = execute(block, x, shortcut(block, x))
    for gate, block in zip(network.gates, network.blocks[1:], strict=False):
        logit, state = gate_logit(gate, x, state)
        x = apply(block, x, logit > limits)
        logits.append(logit)
    scores: Tensor = functional.linear(average(x), network.head_weight, network.head_bias)
    return scores, torch.stack(logits, 1) if logits else scores.narrow(1, 0, 0)


def shortcut(block: FoldedBlock, x: Tensor) -> Tensor:
    return x if block.projection is None else convolve(x, block.projection)


def execute(block: FoldedBlock, x: Tensor, skip: Tensor) -> Tensor:
    return torch.relu_(residual(block, x).add_(skip))


def residual(block: FoldedBlock, x: Tensor) -> Tensor:
    *first, last = block.residual
    for convolution in first:
        x = torch.relu_(convolve(x, convolution))
    return convolve(x, last)


def convolve(x: Tensor, convolution: Convolution) -> Tensor:
    return functional.conv2d(x, convolution.weight, convolution.bias, convolution.stride, convolution.padding)


def average(x: Tensor) -> Tensor:
    return x.mean((2, 3), dtype=torch.float32)


def gate_logit(gate: Gate, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Return the logit [N] of ``gate`` for a feature map [N, C, H, W], and the recurrent state for the next gate."""
    if isinstance(gate, RecurrentGate):
        pooled = average(x)
        if state is None:
            zero = pooled.new_zeros(len(x), gate.recurrent.shape[1])
            state = (zero, zero)
        state = torch.lstm_cell(pooled, state, gate.weight, gate.recurrent, gate.bias, gate.bias)
        return state[0] @ gate.readout + gate.readout_bias, state
    if isinstance(gate, LayeredGate):
        return gate.layers(x.float()).squeeze(1), None
    if gate.pools:
        x = functional.max_pool2d(x, 2)
    for convolution in gate.convolutions:
        x = torch.relu_(convolve(x, convolution))
    return average(x) @ gate.weight + gate.bias, None


def arrange(part: Part, device: str, dtype: torch.dtype = torch.float32) -> Part:
    """Return a folded network, or a part of it, on ``device`` for ``forward``.

    Convolutions get the precision ``dtype`` and the channels-last layout. Everything else stays float32.
    """
    precision = dtype if isinstance(part, Convolution) else torch.float32
    if isinstance(part, RecurrentGate):
        # On CUDA, torch's LSTM cell takes two biases or none. Each gets half, which is exact.
        part = dataclasses.replace(part, bias=part.bias / 2)

    def arranged(value: object) -> object:
        if isinstance(value, Tensor):
            layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
            return value.to(device, precision, memory_format=layout)
        if isinstance(value, nn.Module):
            return copy.deepcopy(value).to(device, torch.float32).eval()
        if isinstance(value, tuple):
            return tuple(arranged(item) for item in value)
        return arrange(value, device, dtype) if dataclasses.is_dataclass(value) else value

    fields = dataclasses.fields(part)  # type: ignore[arg-type]
    changes = {field.name: arranged(getattr(part, field.name)) for field in fields}
    return dataclasses.replace(part, **changes)  # type: ignore[type-var]
