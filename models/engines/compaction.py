"""The torch engine: inside a batch, each block runs on just the images that execute it."""

import dataclasses
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.engines.engine import Routed, plain_answer
from models.engines.folding import Convolution, FoldedBlock, FoldedNetwork, Gate, RecurrentGate
from models.macs import Mode

State = tuple[Tensor, Tensor] | None
Part = TypeVar("Part")


class TorchEngine:
    """A folded network in torch, on the CPU or on CUDA.

    In mode "branch" a block that no image executes is not run, and one that some execute runs on those only.
    In mode "mask" every block is run on the whole batch and the decision chooses: on CUDA that spares a wait
    for the device at every gate.
    """

    name = "torch"

    def __init__(
        self, folded: FoldedNetwork, device: str = "cpu", mode: Mode = "branch", threads: int | None = None
    ) -> None:
        """``threads`` share one operator's work on the CPU; torch has one such number a process."""
        if device == "cpu" and threads is not None:
            torch.set_num_threads(threads)
        if device != "cpu":
            # TF32 rounds to 10 bits: near its threshold, a gate would decide otherwise than on the CPU.
            torch.backends.cudnn.allow_tf32 = False
        self.device = device
        self.mode: Mode = mode
        self.network = transfer(folded, device)

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """See ``Engine.run``."""
        with torch.inference_mode():
            x = torch.from_numpy(images).to(self.device, memory_format=torch.channels_last)
            # Comparing logits spares a sigmoid at every gate, and is exact at thresholds 0 and 1.
            limits = torch.special.logit(torch.from_numpy(thresholds).double()).float().to(self.device)
            x, logits = self.route(x, limits)
            head = self.network.head_weight, self.network.head_bias
            scores = functional.linear(x.mean((2, 3)), *head).cpu().numpy()
            if not logits:
                return plain_answer(scores, len(self.network.blocks), self.mode)
            stacked = torch.stack(logits, 1)
            executed = stacked > limits[:, None]
            return Routed(scores, executed.cpu().numpy(), torch.sigmoid(stacked).cpu().numpy(), self.mode)

    def route(self, x: Tensor, limits: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the last block's output for images [N, 3, H, W], and each gate's logits [N]."""
        network = self.network
        x = torch.relu_(convolve(x, network.stem))
        if network.stem_pools:
            x = functional.max_pool2d(x, 3, 2, 1)
        x = execute(network.blocks[0], x, shortcut(network.blocks[0], x))
        if not network.gates:
            for block in network.blocks[1:]:
                x = execute(block, x, shortcut(block, x))
            return x, []
        apply = compact if self.mode == "branch" else mask
        logits: list[Tensor] = []
        state: State = None
        for gate, block in zip(network.gates, network.blocks[1:], strict=True):
            logit, state = gate_logit(gate, x, state)
            x = apply(block, x, logit > limits)
            logits.append(logit)
        return x, logits

    def close(self) -> None:
        """See ``Engine.close``."""


def compact(block: FoldedBlock, x: Tensor, decision: Tensor) -> Tensor:
    """Run ``block`` on the images of ``x`` [N, C, H, W] that ``decision`` [N] executes; writes to ``x``."""
    skip = shortcut(block, x)
    if len(decision) == 1:
        return execute(block, x, skip) if decision.item() else skip
    rows = decision.nonzero().squeeze(1)
    if len(rows) == 0:
        return skip
    if len(rows) == len(x):
        return execute(block, x, skip)
    return skip.index_copy_(0, rows, execute(block, x.index_select(0, rows), skip.index_select(0, rows)))


def mask(block: FoldedBlock, x: Tensor, decision: Tensor) -> Tensor:
    """Run ``block`` on all of ``x`` [N, C, H, W] and choose by ``decision`` [N]."""
    skip = shortcut(block, x)
    return torch.where(decision[:, None, None, None], execute(block, x, skip), skip)


def shortcut(block: FoldedBlock, x: Tensor) -> Tensor:
    return x if block.projection is None else convolve(x, block.projection)


def execute(block: FoldedBlock, x: Tensor, skip: Tensor) -> Tensor:
    *first, last = block.residual
    for convolution in first:
        x = torch.relu_(convolve(x, convolution))
    return torch.relu_(convolve(x, last).add_(skip))


def convolve(x: Tensor, convolution: Convolution) -> Tensor:
    return functional.conv2d(x, convolution.weight, convolution.bias, convolution.stride, convolution.padding)


def gate_logit(gate: Gate, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Return ``gate``'s logit [N] for a map ``x`` [N, C, H, W], and the recurrent state for the next gate."""
    if isinstance(gate, RecurrentGate):
        if state is None:
            zero = x.new_zeros(len(x), gate.recurrent.shape[1])
            state = (zero, zero)
        state = torch.lstm_cell(x.mean((2, 3)), state, gate.weight, gate.recurrent, gate.bias)
        return state[0] @ gate.readout + gate.readout_bias, state
    if gate.pools:
        x = functional.max_pool2d(x, 2)
    for convolution in gate.convolutions:
        x = torch.relu_(convolve(x, convolution))
    return x.mean((2, 3)) @ gate.weight + gate.bias, None


def transfer(part: Part, device: str) -> Part:
    """Return a dataclass with every tensor in it on ``device``; convolutions get the channels-last layout."""
    fields = dataclasses.fields(part)  # type: ignore[arg-type]
    changes = {field.name: moved(getattr(part, field.name), device) for field in fields}
    return dataclasses.replace(part, **changes)  # type: ignore[type-var]


def moved(value: object, device: str) -> object:
    if isinstance(value, Tensor):
        layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
        return value.to(device, memory_format=layout)
    if isinstance(value, tuple):
        return tuple(moved(item, device) for item in value)
    return transfer(value, device) if dataclasses.is_dataclass(value) else value
