"""The catalogue: all architectures of the paper and its public code, by name."""

import re
from dataclasses import dataclass

from models.errors import UserError
from models.network import BLOCKS, GateKind, SkipNet, Stem
from models.own_gates import own_kinds

CIFAR_BLOCKS = {38: 6, 74: 12, 110: 18, 152: 25}
STATIC_CIFAR_BLOCKS = {14: 2, 20: 3, 26: 4, 32: 5}
"""Depths that exist only as plain ResNets: static networks with the cost of a deeper routed network."""
SUBNETWORK = re.compile(r"(cifar10|cifar100|svhn)_resnet_([1-9]\d?)-([1-9]\d?)-([1-9]\d?)")
"""The name of a plain ResNet by its number of blocks in each group, for instance ``cifar10_resnet_2-3-4``."""
IMAGENET_BLOCKS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10, "imagenet": 1000}
PUBLIC_MISSPELLINGS = {
    "cifar100_feeforward_38": "cifar100_feedforward_38",
    "cifar10_feedfoward_rl_38": "cifar10_feedforward_rl_38",
    "cifar100_feedford_rl_38": "cifar100_feedforward_rl_38",
}


class UnknownArchitecture(UserError):
    """The catalogue has no architecture of this name."""


@dataclass(frozen=True)
class Architecture:
    """One entry of the catalogue. Names with ``_rl_`` are the public code's for the same network trained by HRL."""

    name: str
    stem: Stem
    block: str
    blocks: tuple[int, ...]
    classes: int
    gates: GateKind | None

    def build(self, classes: int | None = None) -> SkipNet:
        """Return a network with random weights. ``classes`` replaces the data set's number of classes."""
        return SkipNet(
            stem=self.stem,
            block=BLOCKS[self.block],
            blocks=self.blocks,
            classes=classes or self.classes,
            gates=self.gates,
        )

    @property
    def backbone(self) -> tuple[Stem, str, tuple[int, ...]]:
        """The backbone.

        Architectures with equal backbones have interchangeable weights, except for gates and classes.
        """
        return self.stem, self.block, self.blocks

    def grows_into(self, other: "Architecture") -> bool:
        """Return whether depth growth can turn this architecture into the other, apart from the gates.

        No group may have fewer blocks, and at least one must have more.
        """
        same_family = (self.stem, self.block, len(self.blocks)) == (other.stem, other.block, len(other.blocks))
        return (
            same_family
            and self.blocks != other.blocks
            and all(own <= others for own, others in zip(self.blocks, other.blocks, strict=True))
        )

    @property
    def image_size(self) -> int:
        """The height and width in pixels of the architecture's usual images."""
        return 32 if self.stem == "cifar" else 224


def first_blocks(groups: tuple[int, ...]) -> list[int]:
    """Return the index of each group's first block in the flat list of blocks."""
    return [sum(groups[:group]) for group in range(len(groups))]


def cifar_architecture(data: str, routing: str, depth: int) -> Architecture:
    gates: dict[str, GateKind | None] = {
        "resnet": None,
        "rnn_gate": "rnn",
        # Paper, section 3.1: FFGate-II for networks of more than 100 layers, FFGate-I for shallower ones.
        "feedforward": "feedforward_2" if depth > 100 else "feedforward_1",
        **{f"{kind}_gate": kind for kind in own_kinds()},
    }
    name = f"{data}_{routing}_{depth}"
    kind = gates[routing.removesuffix("_rl")]
    blocks = (CIFAR_BLOCKS | STATIC_CIFAR_BLOCKS)[depth]
    return Architecture(name, "cifar", "basic", (blocks,) * 3, CLASSES[data], kind)


def imagenet_architecture(routing: str, depth: int) -> Architecture:
    block, blocks = IMAGENET_BLOCKS[depth]
    name = f"imagenet_{routing}_{depth}"
    gates: GateKind | None = None if routing == "resnet" else routing.partition("_gate")[0]
    return Architecture(name, "imagenet", block, blocks, CLASSES["imagenet"], gates)


def catalogue() -> dict[str, Architecture]:
    """Return every architecture by name."""
    found = []
    own = [f"{kind}_gate" for kind in own_kinds()]
    for routing in ("resnet", "rnn_gate", "rnn_gate_rl", "feedforward", "feedforward_rl", *own):
        for data in ("cifar10", "cifar100", "svhn"):
            depths = [*STATIC_CIFAR_BLOCKS, *CIFAR_BLOCKS] if routing == "resnet" else CIFAR_BLOCKS
            found += [cifar_architecture(data, routing, depth) for depth in depths]
        if not routing.startswith("feedforward"):
            found += [imagenet_architecture(routing, depth) for depth in IMAGENET_BLOCKS]
    return {architecture.name: architecture for architecture in found}


def find_architecture(name: str) -> Architecture:
    """Return the architecture ``name``. The public code's three misspelt names are also known.

    A plain ResNet may be named by its blocks: `SUBNETWORK`.

    Raises UnknownArchitecture with a list of the known names.
    """
    found = catalogue().get(PUBLIC_MISSPELLINGS.get(name, name))
    if match := SUBNETWORK.fullmatch(name):
        data, *blocks = match.groups()
        return Architecture(name, "cifar", "basic", tuple(map(int, blocks)), CLASSES[data], None)
    if found is None:
        raise UnknownArchitecture(
            f"unknown architecture {name!r}; choose one of "
            "{cifar10,cifar100,svhn}_{resnet,rnn_gate,rnn_gate_rl,feedforward,feedforward_rl}_{38,74,110,152}, "
            "{cifar10,cifar100,svhn}_resnet_{14,20,26,32} and imagenet_{resnet,rnn_gate,rnn_gate_rl}_{18,34,50,101,152}"
            f"{', or <data>_KIND_gate_<depth> with KIND one of ' + ', '.join(own_kinds()) if own_kinds() else ''}"
        )
    return found
