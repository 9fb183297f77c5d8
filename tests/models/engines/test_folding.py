"""A network with an unknown part is refused, because the fast engines would compute something else."""

import pytest
from torch import nn

from models.architectures import find_architecture
from models.blocks import BasicBlock
from models.engines.folding import fold
from models.engines.protocol import EngineError
from models.gates import RNNGate
from models.network import SkipNet


class OtherBlock(BasicBlock):
    pass


class OtherGate(RNNGate):
    pass


def another_block(network: SkipNet) -> None:
    network.blocks[1] = OtherBlock(16, 16)


def another_gate(network: SkipNet) -> None:
    network.gates[0] = OtherGate(16)


def another_activation(network: SkipNet) -> None:
    network.blocks[1].residual[2] = nn.GELU()  # type: ignore[operator, assignment]


def grouped_convolution(network: SkipNet) -> None:
    network.blocks[1].residual[0] = nn.Conv2d(16, 16, 3, padding=1, bias=False, groups=2)  # type: ignore[operator, assignment]


def no_batch_norm(network: SkipNet) -> None:
    del network.blocks[1].residual[1]  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_block, "no code for the block OtherBlock"),
        (another_gate, "no code for the gate OtherGate"),
        (another_activation, "no code for the layer GELU"),
        (grouped_convolution, "no code for the layer Conv2d.*groups=2"),
        (no_batch_norm, "no code for the layer ReLU"),
    ],
)
def test_an_unknown_part_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    network = find_architecture("cifar10_rnn_gate_38").build()
    change(network)
    with pytest.raises(EngineError, match=message):
        fold(network)
