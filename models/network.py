"""The network (SkipNet, section 3): a ResNet with a gate before every block but the first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.blocks import BasicBlock, Block, BottleneckBlock, conv_norm
from models.gates import FeedForwardGate, RecurrentController, RNNGate, average

GateKind = Literal["rnn", "feedforward_1", "feedforward_2"]
Stem = Literal["cifar", "imagenet"]
Decide = Callable[[int, Tensor], Tensor]
"""Gate index and logits [N] in, decisions [N] out (1 executes, 0 skips; may carry a gradient)."""
RunBlock = Callable[[Block, Tensor, Tensor], Tensor]
"""A block, its input [N, C, H, W] and the decisions [N] in, its output out, like `run_masked`."""


@dataclass(frozen=True)
class Routing:
    """What the gates said of a batch: ``logits`` and ``decisions``, both [N, B-1]."""

    logits: Tensor
    decisions: Tensor

    @property
    def probability(self) -> Tensor:
        """Probability [N, B-1] that each gate gives to executing its block."""
        return torch.sigmoid(self.logits)

    @property
    def computation(self) -> Tensor:
        """The paper's computation percentage / 100 of each image [N]: the executed share of all B blocks."""
        return (1 + self.decisions.sum(1)) / (1 + self.decisions.shape[1])


class SkipNet(nn.Module):
    """A ResNet of ``B`` blocks; with a gate kind, gate ``i`` reads block ``i``'s output and decides block ``i + 1``.

    ``gates`` is None for a plain ResNet. ``forward`` is the masked form: every block is computed and the
    decisions choose between its output and its shortcut. It is what every engine must agree with.
    """

    def __init__(
        self, *, stem: Stem, block: type[Block], blocks: tuple[int, ...], classes: int, gates: GateKind | None
    ) -> None:
        super().__init__()
        width = 16 if stem == "cifar" else 64
        self.stem = cifar_stem(width) if stem == "cifar" else imagenet_stem(width)
        self.layers_per_block = block.layers
        members: list[Block] = []
        channels = width
        for group, count in enumerate(blocks):
            for index in range(count):
                stride = 2 if group > 0 and index == 0 else 1
                members.append(block(channels, width << group, stride))  # type: ignore[call-arg]
                channels = (width << group) * block.expansion
        self.blocks = nn.ModuleList(members)
        self.head = nn.Linear(channels, classes)
        self.gate_kind = gates
        self.gates = nn.ModuleList()
        self.controller: RecurrentController | None = None
        if gates is not None:
            for read in members[:-1]:
                self.gates.append(make_gate(gates, output_channels(read)))
            if gates == "rnn":
                self.controller = RecurrentController()
        initialise(self)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Be in evaluation mode for as long; each module's own mode is restored, of statistics that are frozen too."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    @property
    def decision_count(self) -> int:
        """Decisions an image takes: B - 1, or 0 in a plain ResNet."""
        return len(self.gates)

    def gate_logit(
        self, index: int, x: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return the logit [N] of gate ``index`` for block ``index``'s output ``x``, and the recurrent state."""
        answer: Tensor = self.gates[index](x)
        if self.controller is None:
            return answer, None
        logit, state = self.controller(answer, state)
        return logit, state

    def classify(self, x: Tensor) -> Tensor:
        """Return the class logits [N, classes] of the last block's output."""
        logits: Tensor = self.head(average(x))
        return logits

    def forward(
        self,
        images: Tensor,
        decide: Decide | None = None,
        run: RunBlock | None = None,
        gates_apart: bool = False,
    ) -> tuple[Tensor, Routing]:
        """Return class logits [N, classes] and the routing of normalised images [N, 3, H, W].

        ``decide`` turns gate logits into decisions, by default: probability above 0.5 executes. ``run`` gives a block's
        output for them, by default masked. With ``gates_apart`` no gradient flows from the gates into what they read.
        """
        decide, run = decide or above_half, run or run_masked
        x = self.blocks[0](self.stem(images))
        state = None
        logits, decisions = [], []
        for index, block in enumerate(self.blocks[1:]):
            if self.gate_kind is None:
                x = block(x)
                continue
            logit, state = self.gate_logit(index, x.detach() if gates_apart else x, state)
            decision = decide(index, logit)
            x = run(block, x, decision)  # type: ignore[arg-type]
            logits.append(logit)
            decisions.append(decision)
        return self.classify(x), stack_routing(logits, decisions, images)


def run_masked(block: Block, x: Tensor, decision: Tensor) -> Tensor:
    """Compute the block for every image; the decisions choose between its output and its shortcut."""
    shortcut = block.shortcut(x)
    executed = block.execute(x, shortcut)
    return torch.lerp(shortcut, executed, decision[:, None, None, None].to(executed.dtype))


def limits_of(thresholds: Tensor) -> Tensor:
    """Return the gate logits [N], float32, whose probabilities are ``thresholds`` [N].

    Comparing logits spares a sigmoid at every gate, and is exact at thresholds 0 and 1, and what lies beyond them.
    """
    limits: Tensor = torch.special.logit(thresholds.double().clamp(0, 1))
    return limits.float()


def decide_at(threshold: float) -> Decide:
    """Return a way to decide: a block is executed where its gate's probability is above ``threshold``, strictly."""
    limit = limits_of(torch.tensor(threshold)).item()
    return lambda _, logits: (logits > limit).to(logits.dtype)


above_half = decide_at(0.5)


def stack_routing(logits: list[Tensor], decisions: list[Tensor], images: Tensor) -> Routing:
    """Return the routing of per-gate columns; for a plain ResNet, one of no columns."""
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
    return FeedForwardGate(channels, 1 if kind == "feedforward_1" else 2)


def output_channels(block: Block) -> int:
    norm = block.residual[-1]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm.num_features


def initialise(network: SkipNet) -> None:
    """Initialise as the public code does: He et al.'s normal for convolutions, ones and zeros for batch norm."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


BLOCKS: dict[str, type[Block]] = {"basic": BasicBlock, "bottleneck": BottleneckBlock}
