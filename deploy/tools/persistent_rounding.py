"""Emulate the persistent kernel's half precision in torch on a CPU.

    python -m deploy.tools.persistent_rounding CHECKPOINT --data FOLDER

This compares decisions and labels with the reference engine on all test images of the checkpoint's data set. It rounds
as the kernel does: filters and maps are fp16, and sums, biases, averages (before a map is rounded), gates and head are
fp32. It does not emulate the order of sums, which a GPU does not guarantee.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.checkpoint import read_checkpoint
from models.data.datasets import find_dataset
from models.data.source import read_source
from models.engines.folding import Convolution, ConvolutionalGate, FoldedNetwork, Gate, RecurrentGate, fold
from models.engines.protocol import Routed, plain_output
from models.engines.torch.reference import ReferenceEngine
from models.evaluation.agreement import compare_engines
from models.evaluation.metrics import prepared_batches
from models.gates import RNN_WIDTH, Limits

State = tuple[Tensor, Tensor]


class RoundedEngine:
    """Compute every block of a folded network, and select its output or its shortcut by the decision."""

    name = "persistent"
    device = "cpu"

    def __init__(self, folded: FoldedNetwork) -> None:
        self.folded = folded

    @torch.inference_mode()
    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run a batch, as ``Engine.run`` does."""
        limits = Limits.of(thresholds).probabilities
        x = rounded(convolve(rounded(torch.from_numpy(images)), self.folded.stem).relu())
        probabilities, decisions = [], []
        state = torch.zeros(len(x), RNN_WIDTH), torch.zeros(len(x), RNN_WIDTH)
        mean = x.mean((2, 3))
        for index, block in enumerate(self.folded.blocks):
            shortcut, shortcut_mean = x, mean
            if block.projection is not None:
                exact = convolve(x, block.projection)
                shortcut, shortcut_mean = rounded(exact), exact.mean((2, 3))
            first, second = block.residual
            exact = (convolve(rounded(convolve(x, first).relu()), second) + shortcut).relu()
            output, output_mean = rounded(exact), exact.mean((2, 3))
            if index > 0 and self.folded.gates:
                logit, state = gate_logit(self.folded.gates[index - 1], x, mean, state)
                probabilities.append(torch.sigmoid(logit))
                execute = probabilities[-1] > limits
                decisions.append(execute)
                output = torch.where(execute[:, None, None, None], output, shortcut)
                output_mean = torch.where(execute[:, None], output_mean, shortcut_mean)
            x, mean = output, output_mean
        logits = functional.linear(mean, self.folded.head_weight, self.folded.head_bias).numpy()
        if not decisions:
            return plain_output(logits, len(self.folded.blocks), "branch")
        return Routed(logits, torch.stack(decisions, 1).numpy(), torch.stack(probabilities, 1).numpy(), "branch")

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def rounded(x: Tensor) -> Tensor:
    return x.half().float()


def convolve(x: Tensor, convolution: Convolution) -> Tensor:
    weight = rounded(convolution.weight)
    return functional.conv2d(x, weight, convolution.bias, convolution.stride, convolution.padding)


def gate_logit(gate: Gate, x: Tensor, mean: Tensor, state: State) -> tuple[Tensor, State]:
    """Return the logit [N] and the LSTM's next state, from a map and its average before rounding."""
    if isinstance(gate, RecurrentGate):
        hidden, cell = state
        parts = mean @ gate.weight.T + hidden @ gate.recurrent.T + gate.bias
        enter, forget, candidate, output = parts.chunk(4, 1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        hidden = output.sigmoid() * cell.tanh()
        return hidden @ gate.readout + gate.readout_bias, (hidden, cell)
    assert isinstance(gate, ConvolutionalGate), "the kernel has no other gates"
    return convolutional_logit(gate, x), state


def convolutional_logit(gate: ConvolutionalGate, x: Tensor) -> Tensor:
    if gate.pools:
        x = functional.max_pool2d(x, 2)
    for convolution in gate.convolutions[:-1]:
        x = rounded(convolve(x, convolution).relu())
    averaged = convolve(x, gate.convolutions[-1]).relu().mean((2, 3))
    return averaged @ gate.weight + gate.bias


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare the persistent kernel's half precision with the reference engine."
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint version")
    parser.add_argument("--data", type=Path, required=True, help="folder of its data set")
    options = parser.parse_args()
    checkpoint = read_checkpoint(options.checkpoint)
    source = read_source(find_dataset(checkpoint.config.training.dataset or "(none named)"), "test", options.data)
    agreement = compare_engines(
        RoundedEngine(fold(checkpoint.network)),
        ReferenceEngine(checkpoint.network),
        prepared_batches(source, checkpoint.config.input),
        checkpoint.config.execute_threshold,
    )
    name = "/".join(options.checkpoint.resolve().parts[-2:])
    sys.stdout.write(f"{name}: {agreement}: {'equal' if agreement.holds else 'NOT equal'}\n")
    sys.exit(not agreement.holds)


if __name__ == "__main__":
    main()
