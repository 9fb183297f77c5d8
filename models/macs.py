"""Count the MACs (multiply-adds) of a network."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.network import SkipNet
from models.own_gates import OwnGate

Mode = Literal["branch", "mask"]


@dataclass(frozen=True)
class MacCounts:
    """The MACs of one image by part, counting convolutions, linear layers and LSTM cells.

    ``blocks`` [B] are the residual branches, which a skipped block does not compute. ``projections`` [B] are the
    shortcuts, which always run (0 for the identity). ``gates`` [B-1] include the recurrent controller; it is empty in a
    plain ResNet.
    """

    stem: int
    blocks: tuple[int, ...]
    projections: tuple[int, ...]
    gates: tuple[int, ...]
    head: int

    @property
    def dense(self) -> int:
        """The MACs of the plain ResNet, with every block and no gate. Savings are relative to it."""
        return self.stem + sum(self.blocks) + sum(self.projections) + self.head

    @property
    def full(self) -> int:
        """The MACs of executing every block, with the gates."""
        return self.dense + sum(self.gates)

    @property
    def unconditional(self) -> int:
        """The MACs that every image costs: stem, first block, projections, gates and head."""
        return self.full - sum(self.blocks[1:])

    def executed(self, executed: NDArray[np.bool_], mode: Mode = "branch") -> NDArray[np.int64]:
        """Return the executed MACs [N] for decisions [N, B-1]. In mode "mask", skipped blocks are computed too."""
        ran = np.ones_like(executed) if mode == "mask" else executed
        return self.unconditional + ran.astype(np.int64) @ np.asarray(self.blocks[1:], np.int64)


def count_macs(network: SkipNet, height: int, width: int) -> MacCounts:
    """Return the MACs of ``network`` for one image of ``height`` x ``width`` pixels."""
    counts: dict[nn.Module, int] = {}

    def observe(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, object]) -> None:
        if isinstance(module, OwnGate):
            counts[module] = module.other_macs(inputs[0])
            return
        result = output if isinstance(output, Tensor) else output[0]
        # The controller is one module that runs at every gate. The cost of one call is recorded, not the sum.
        counts[module] = module_macs(module, result)

    handles = [
        module.register_forward_hook(observe)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.LSTMCell | OwnGate)
    ]
    try:
        with network.evaluating(), torch.inference_mode():
            device = next(network.parameters()).device
            network(torch.zeros(1, 3, height, width, device=device))
    finally:
        for handle in handles:
            handle.remove()

    def total(part: nn.Module) -> int:
        return sum(counts.get(module, 0) for module in part.modules())

    controller = total(network.controller) if network.controller is not None else 0
    return MacCounts(
        stem=total(network.stem),
        blocks=tuple(total(block.residual) for block in network.blocks),  # type: ignore[arg-type]
        projections=tuple(total(block.shortcut) for block in network.blocks),  # type: ignore[arg-type]
        gates=tuple(total(gate) + controller for gate in network.gates),
        head=total(network.head),
    )


def module_macs(module: nn.Module, output: Tensor) -> int:
    """Return the MACs of one call of a convolution, linear layer or LSTM cell on one image."""
    if isinstance(module, nn.Conv2d):
        return output[0].numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return module.weight.numel()
    assert isinstance(module, nn.LSTMCell)
    return module.weight_ih.numel() + module.weight_hh.numel()
