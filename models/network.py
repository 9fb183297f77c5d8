"""Define SkipNet (Wang et al. 2018, section 3): a ResNet with a gate before every block except the first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.blocks import BasicBlock, Block, BottleneckBlock, conv_norm
from models.gates import FeedForwardGate, Limits, RecurrentController, RNNGate, average
from models.own_gates import own_kinds

GateKind = str
"""The name of a kind of gate: "rnn", "feedforward_1", "feedforward_2", or a registered one (`models.own_gates`)."""
Stem = Literal["cifar", "imagenet"]
Decide = Callable[[int, Tensor], Tensor]
"""Maps a gate's index and logits [N] to decisions [N]: 1 executes, 0 skips. Decisions may have a gradient."""
RunBlock = Callable[[Block, Tensor, Tensor], Tensor]
"""Maps a block, its input [N, C, H, W] and decisions [N] to the block's output, as `run_masked` does."""


@dataclass(frozen=True)
class Routing:
    """The gates' ``logits`` and ``decisions`` for a batch, both [N, B-1]."""

    logits: Tensor
    decisions: Tensor

    @property
    def probability(self) -> Tensor:
        """The probability [N, B-1] of executing each gated block."""
        return torch.sigmoid(self.logits)

    @property
    def computation(self) -> Tensor:
        """The share [N] of all B blocks that each image executes: the paper's computation percentage / 100."""
        return (1 + self.decisions.sum(1)) / (1 + self.decisions.shape[1])


class SkipNet(nn.Module):
    """A ResNet of ``B`` blocks, with gates or without.

    Gate ``i`` reads the output of block ``i`` and decides on block ``i + 1``. ``gates`` is None for a plain ResNet.
    ``forward`` is the masked form: it computes every block and selects the block's output or its shortcut by the
    decision. Every engine must have the same output.
    """

    def __init__(
        self, *, stem: Stem, block: type[Block], blocks: tuple[int, ...], classes: int, gates: GateKind | None
    ) -> None:
        super().__init__()
        width = 16 if stem == "cifar" else 64
        self.stem = cifar_stem(width) if stem == "cifar" else imagenet_stem(width)
        self.layers_per_block = block.layers
        layers: list[Block] = []
        channels = width
        for group, count in enumerate(blocks):
            for index in range(count):
                stride = 2 if group > 0 and index == 0 else 1
                layers.append(block(channels, width << group, stride))  # type: ignore[call-arg]
                channels = (width << group) * block.expansion
        self.blocks = nn.ModuleList(layers)
        self.head = nn.Linear(channels, classes)
        self.gate_kind = gates
        self.gates = nn.ModuleList()
        self.controller: RecurrentController | None = None
        if gates is not None:
            for gated in layers[:-1]:
                self.gates.append(make_gate(gates, output_channels(gated)))
            if gates == "rnn":
                self.controller = RecurrentController()
        initialise(self)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch to evaluation mode, then restore the mode of each module. Batch norm alone may be frozen."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    @property
    def decision_count(self) -> int:
        """The number of decisions for an image: B - 1, or 0 in a plain ResNet."""
        return len(self.gates)

    def gate_logit(
        self, index: int, x: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return the logit [N] of gate ``index`` and the recurrent state, from the output ``x`` of block ``index``."""
        output: Tensor = self.gates[index](x)
        if self.controller is None:
            return output, None
        logit, state = self.controller(output, state)
        return logit, state

    def classify(self, x: Tensor) -> Tensor:
        """Return class logits [N, classes] from the output of the last block."""
        logits: Tensor = self.head(average(x))
        return logits

    def forward(
        self,
        images: Tensor,
        decide: Decide | None = None,
        run: RunBlock | None = None,
        detach_gates: bool = False,
    ) -> tuple[Tensor, Routing]:
        """Return class logits [N, classes] and the routing of normalised images [N, 3, H, W].

        ``decide`` turns gate logits into decisions. By default a probability above 0.5 executes the block. ``run``
        computes a block's output for these decisions, by default masked. With ``detach_gates``, the backbone gets no
        gradient from the gates.
        """
        decide, run = decide or above_half, run or run_masked
        x = self.blocks[0](self.stem(images))
        state = None
        logits, decisions = [], []
        for index, block in enumerate(self.blocks[1:]):
            if self.gate_kind is None:
                x = block(x)
                continue
            logit, state = self.gate_logit(index, x.detach() if detach_gates else x, state)
            decision = decide(index, logit)
            x = run(block, x, decision)  # type: ignore[arg-type]
            logits.append(logit)
            decisions.append(decision)
        return self.classify(x), stack_routing(logits, decisions, images)


def run_masked(block: Block, x: Tensor, decision: Tensor) -> Tensor:
    """Compute the block for every image and select its output or its shortcut by the decisions."""
    shortcut = block.shortcut(x)
    executed = block.execute(x, shortcut)
    return torch.lerp(shortcut, executed, decision[:, None, None, None].to(executed.dtype))


def decide_at(threshold: float) -> Decide:
    """Return the decision function that executes a block if its gate's probability exceeds ``threshold``."""
    limit = Limits.of(threshold).logits.item()
    return lambda _, logits: (logits > limit).to(logits.dtype)


above_half = decide_at(0.5)


def stack_routing(logits: list[Tensor], decisions: list[Tensor], images: Tensor) -> Routing:
    """Return the routing from one column per gate, or from no columns for a plain ResNet."""
    if not logits:
        empty = images.new_zeros(len(images), 0)
        return Routing(empty, empty)
    return Routing(torch.stack(logits, 1), torch.stack(decisions, 1))


def cifar_stem(width: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm(3, width, 3), nn.ReLU())


def imagenet_stem(width: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm(3, width, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


def make_gate(kind: GateKind, channels: int) -> nn.Module:
    if kind == "rnn":
        return RNNGate(channels)
    if kind in ("feedforward_1", "feedforward_2"):
        return FeedForwardGate(channels, int(kind[-1]))
    return own_kinds()[kind](channels)


def output_channels(block: Block) -> int:
    norm = block.residual[-1]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm.num_features


def initialise(network: SkipNet) -> None:
    """Initialise convolutions from He et al.'s normal distribution, as the public code does.

    Batch norm keeps torch's ones and zeros.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


BLOCKS: dict[str, type[Block]] = {"basic": BasicBlock, "bottleneck": BottleneckBlock}
