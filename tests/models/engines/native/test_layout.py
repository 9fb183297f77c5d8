"""A folded network that native.cpp has no code for is refused, because C++ would read beyond its arrays."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from models.architectures import find_architecture
from models.engines.folding import Convolution, ConvolutionalGate, FoldedNetwork, RecurrentGate, fold
from models.engines.native.layout import Layout
from models.engines.protocol import EngineError


def folded(architecture: str = "cifar10_rnn_gate_38") -> FoldedNetwork:
    return fold(find_architecture(architecture).build())


def convolution(inputs: int, outputs: int, kernel: int, stride: int) -> Convolution:
    return Convolution(torch.zeros(outputs, inputs, kernel, kernel), torch.zeros(outputs), stride)


def with_first_block(network: FoldedNetwork, *residual: Convolution) -> FoldedNetwork:
    return replace(network, blocks=(replace(network.blocks[0], residual=residual), *network.blocks[1:]))


def with_first_gate(network: FoldedNetwork, gate: object) -> FoldedNetwork:
    return replace(network, gates=(gate, *network.gates[1:]))  # type: ignore[arg-type]


def no_convolutions_in_a_gate(network: FoldedNetwork) -> FoldedNetwork:
    gates = tuple(ConvolutionalGate(False, (), torch.zeros(16), 0.0) for _ in network.gates)
    return replace(network, gates=gates)


def short_lstm(network: FoldedNetwork) -> FoldedNetwork:
    gate = network.gates[0]
    assert isinstance(gate, RecurrentGate)
    return with_first_gate(network, replace(gate, recurrent=gate.recurrent[:, :5]))


FAULTS: dict[str, tuple[Callable[[FoldedNetwork], FoldedNetwork], str]] = {
    "unknown gate": (lambda network: with_first_gate(network, object()), "gates of this kind"),
    "two kinds of gates": (
        lambda network: with_first_gate(network, folded("cifar10_feedforward_38").gates[0]),
        "gates of this kind",
    ),
    "missing gate": (lambda network: replace(network, gates=network.gates[1:]), "a number of gates other than"),
    "gate without convolutions": (no_convolutions_in_a_gate, "a gate of 0 convolutions"),
    "LSTM of another size": (short_lstm, "a recurrent gate of this size"),
    "block without convolutions": (lambda network: with_first_block(network), "without convolutions"),
    "large kernel": (lambda network: with_first_block(network, convolution(16, 16, 5, 1)), "a 5x5 convolution"),
    "large stride": (lambda network: with_first_block(network, convolution(16, 16, 3, 3)), "of stride 3"),
    "smaller map without projection": (
        lambda network: with_first_block(network, convolution(16, 16, 3, 2)),
        "whose shortcut does not fit",
    ),
    "wrong channels": (
        lambda network: with_first_block(network, convolution(8, 16, 3, 1)),
        "a convolution of 8 channels on a map of 16",
    ),
    "wrong head": (lambda network: replace(network, head_weight=torch.zeros(10, 32)), "a head that does not fit"),
    "grey images": (lambda network: replace(network, stem=convolution(1, 16, 3, 1)), "three channels"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unsupported_network_is_refused(fault: str) -> None:
    change, message = FAULTS[fault]
    with pytest.raises(EngineError, match=f"native engine has no code for .*{message}"):
        Layout(change(folded()))


@pytest.mark.parametrize("architecture", ["cifar10_resnet_38", "cifar10_feedforward_110", "imagenet_rnn_gate_50"])
def test_every_number_of_the_network_is_laid_out(architecture: str) -> None:
    network = folded(architecture)
    layout = Layout(network)
    convolutions = [network.stem, *(each for block in network.blocks for each in block.residual)]
    assert sum(numbers.size for numbers in layout.numbers) > sum(each.weight.numel() for each in convolutions)
