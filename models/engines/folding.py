"""Fold batch norm into the convolutions of a trained network, for the fast engines."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.blocks import BasicBlock, Block, BottleneckBlock
from models.engines.protocol import EngineError
from models.gates import FeedForwardGate, RNNGate
from models.network import SkipNet, output_channels
from models.own_gates import OwnGate


@dataclass(frozen=True)
class Convolution:
    """A square convolution with zero padding of K // 2: ``weight`` [O, I, K, K] and ``bias`` [O], float32."""

    weight: Tensor
    bias: Tensor
    stride: int

    @property
    def padding(self) -> int:
        return self.weight.shape[-1] // 2


@dataclass(frozen=True)
class FoldedBlock:
    """A residual block: a ReLU follows every convolution but the last, and the sum with the shortcut.

    ``projection`` is None if the shortcut is the identity.
    """

    residual: tuple[Convolution, ...]
    projection: Convolution | None


@dataclass(frozen=True)
class RecurrentGate:
    """An RNN gate with its embedding folded into the LSTM's input weights.

    ``weight`` [40, C] and ``bias`` [40] map the averaged feature map to the pre-activations of the LSTM's input,
    forget, cell and output parts (torch's order). ``recurrent`` [40, 10] times the last hidden state is added to them.
    ``readout`` [10] and ``readout_bias`` map the new hidden state to the logit. The last three are the same in every
    gate.
    """

    weight: Tensor
    bias: Tensor
    recurrent: Tensor
    readout: Tensor
    readout_bias: float


@dataclass(frozen=True)
class ConvolutionalGate:
    """A feed-forward gate: convolutions, each followed by a ReLU, an average over the map, and a linear layer.

    If ``pools``, a 2x2 max pooling comes first. The logit is ``weight`` [C] . average + ``bias``.
    """

    pools: bool
    convolutions: tuple[Convolution, ...]
    weight: Tensor
    bias: float


@dataclass(frozen=True)
class LayeredGate:
    """A registered gate (`models.own_gates`): ``layers`` map a feature map with ``channels`` [N, C, H, W] to the logit
    [N, 1].
    """

    channels: int
    layers: nn.Module


Gate = RecurrentGate | ConvolutionalGate | LayeredGate


@dataclass(frozen=True)
class FoldedNetwork:
    """A complete network. With ``stem_pools``, a 3x3 max pooling of stride 2 follows the stem's ReLU (ImageNet)."""

    stem: Convolution
    stem_pools: bool
    blocks: tuple[FoldedBlock, ...]
    gates: tuple[Gate, ...]
    head_weight: Tensor
    head_bias: Tensor


@torch.no_grad()
def fold(network: SkipNet) -> FoldedNetwork:
    """Return ``network`` in evaluation mode, with batch norm folded in double precision.

    Raises EngineError for a block, gate or layer that the fast engines have no code for.
    """
    return FoldedNetwork(
        stem=fold_stem(network.stem),
        stem_pools=any(isinstance(module, nn.MaxPool2d) for module in network.stem),
        blocks=tuple(fold_block(block) for block in network.blocks),
        gates=tuple(fold_gate(network, index) for index in range(len(network.gates))),
        head_weight=network.head.weight.detach().clone(),
        head_bias=network.head.bias.detach().clone(),
    )


def fold_stem(stem: nn.Sequential) -> Convolution:
    layers = list(stem)
    if isinstance(layers[-1], nn.MaxPool2d):
        layers.pop()
    return fold_sequence(nn.Sequential(*layers))[0]


def fold_block(block: nn.Module) -> FoldedBlock:
    if type(block) not in (BasicBlock, BottleneckBlock):
        raise unknown(block, "block")
    assert isinstance(block, Block)
    projection = fold_sequence(block.shortcut)[0] if isinstance(block.shortcut, nn.Sequential) else None
    return FoldedBlock(fold_sequence(block.residual), projection)


def fold_sequence(sequence: nn.Sequential) -> tuple[Convolution, ...]:
    """Fold each batch norm into the convolution before it.

    ReLUs are dropped, because the engines apply them anyway. Raises EngineError for any other layer.
    """
    folded: list[Convolution] = []
    convolution: nn.Conv2d | None = None
    for module in sequence:
        if isinstance(module, nn.Conv2d) and convolution is None:
            convolution = module
        elif isinstance(module, nn.BatchNorm2d) and convolution is not None:
            folded.append(fold_pair(convolution, module))
            convolution = None
        elif not isinstance(module, nn.ReLU) or convolution is not None:
            raise unknown(module, "layer")
    if convolution is not None:
        raise unknown(convolution, "layer")
    return tuple(folded)


def fold_pair(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Convolution:
    """Return a convolution that computes a convolution and its batch norm.

    Raises EngineError for a convolution of another kind.
    """
    size, stride = convolution.kernel_size[0], convolution.stride[0]
    plain = nn.Conv2d(1, 1, size, stride, padding=size // 2, bias=False)
    for setting in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "bias"):
        if getattr(convolution, setting) != getattr(plain, setting):
            raise unknown(convolution, "layer")
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = convolution.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    return Convolution(weight.float().contiguous(), bias.float(), convolution.stride[0])


def fold_gate(network: SkipNet, index: int) -> Gate:
    gate = network.gates[index]
    if isinstance(gate, OwnGate):
        return LayeredGate(output_channels(network.blocks[index]), gate.folded())  # type: ignore[arg-type]
    if type(gate) is FeedForwardGate:
        layers = list(gate.features)
        pools = isinstance(layers[0], nn.MaxPool2d)
        weight, bias = gate.head.weight.double(), gate.head.bias.double()
        return ConvolutionalGate(
            pools=pools,
            convolutions=fold_sequence(nn.Sequential(*layers[pools:])),
            weight=(weight[1] - weight[0]).float(),
            bias=float(bias[1] - bias[0]),
        )
    if type(gate) is not RNNGate or network.controller is None:
        raise unknown(gate, "gate")
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


def unknown(module: nn.Module, part: str) -> EngineError:
    return EngineError(f"the fast engines have no code for the {part} {module}; choose the engine reference")
