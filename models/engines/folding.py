"""A trained network with batch norm folded into its convolutions: the plain numbers that the fast engines run."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.blocks import Block
from models.gates import FeedForwardGate, RNNGate
from models.network import SkipNet


@dataclass(frozen=True)
class Convolution:
    """``weight`` [O, I, K, K] and ``bias`` [O], float32; zero padding of K // 2 on each side."""

    weight: Tensor
    bias: Tensor
    stride: int

    @property
    def padding(self) -> int:
        return self.weight.shape[-1] // 2


@dataclass(frozen=True)
class FoldedBlock:
    """A block's convolutions, with a ReLU between each two and after the sum with the shortcut."""

    residual: tuple[Convolution, ...]
    projection: Convolution | None


@dataclass(frozen=True)
class RecurrentGate:
    """An RNN gate with its embedding folded into the LSTM's input weights.

    ``weight`` [40, C] and ``bias`` [40] map the averaged map to the pre-activations of the LSTM's input, forget,
    cell and output parts (torch's order), to which ``recurrent`` [40, 10] times the last hidden state is added;
    ``readout`` [10] and ``readout_bias`` map the new hidden state to the logit. The last three are the same in
    every gate.
    """

    weight: Tensor
    bias: Tensor
    recurrent: Tensor
    readout: Tensor
    readout_bias: float


@dataclass(frozen=True)
class ConvolutionalGate:
    """A feed-forward gate: a 2x2 max pooling first where ``pools``, convolutions each followed by a ReLU, an
    average over the map, and the logit ``weight`` [C] . average + ``bias``.
    """

    pools: bool
    convolutions: tuple[Convolution, ...]
    weight: Tensor
    bias: float


Gate = RecurrentGate | ConvolutionalGate


@dataclass(frozen=True)
class FoldedNetwork:
    """The whole network. ``stem_pools``: max pooling 3x3, stride 2, padding 1 after the stem's ReLU (ImageNet)."""

    stem: Convolution
    stem_pools: bool
    blocks: tuple[FoldedBlock, ...]
    gates: tuple[Gate, ...]
    head_weight: Tensor
    head_bias: Tensor


@torch.no_grad()
def fold(network: SkipNet) -> FoldedNetwork:
    """Return ``network`` as it answers in evaluation mode, with batch norm folded in double precision."""
    return FoldedNetwork(
        stem=fold_sequence(network.stem)[0],
        stem_pools=any(isinstance(module, nn.MaxPool2d) for module in network.stem),
        blocks=tuple(fold_block(block) for block in network.blocks),  # type: ignore[arg-type]
        gates=tuple(fold_gate(network, gate) for gate in network.gates),
        head_weight=network.head.weight.detach().clone(),
        head_bias=network.head.bias.detach().clone(),
    )


def fold_block(block: Block) -> FoldedBlock:
    projection = fold_sequence(block.shortcut)[0] if isinstance(block.shortcut, nn.Sequential) else None
    return FoldedBlock(fold_sequence(block.residual), projection)


def fold_sequence(sequence: nn.Sequential) -> tuple[Convolution, ...]:
    """Fold each batch norm of a sequence into the convolution just before it."""
    modules = list(sequence)
    return tuple(
        fold_pair(convolution, norm)
        for convolution, norm in itertools.pairwise(modules)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    )


def fold_pair(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Convolution:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = convolution.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    return Convolution(weight.float().contiguous(), bias.float(), convolution.stride[0])


def fold_gate(network: SkipNet, gate: nn.Module) -> Gate:
    if isinstance(gate, FeedForwardGate):
        weight, bias = gate.head.weight.double(), gate.head.bias.double()
        return ConvolutionalGate(
            pools=isinstance(gate.features[0], nn.MaxPool2d),
            convolutions=fold_sequence(gate.features),
            weight=(weight[1] - weight[0]).float(),
            bias=float(bias[1] - bias[0]),
        )
    assert isinstance(gate, RNNGate) and network.controller is not None
    rnn, readout = network.controller.rnn, network.controller.projection
    inputs = rnn.weight_ih.double()
    bias = inputs @ gate.embedding.bias.double() + rnn.bias_ih.double() + rnn.bias_hh.double()
    return RecurrentGate(
        weight=(inputs @ gate.embedding.weight.double()).float(),
        bias=bias.float(),
        recurrent=rnn.weight_hh.detach().clone(),
        readout=readout.weight[0].detach().clone(),
        readout_bias=float(readout.bias[0]),
    )
