"""The catalogue: every architecture of the paper and its public code, by name."""

from dataclasses import dataclass

from models.network import BLOCKS, GateKind, SkipNet, Stem

CIFAR_BLOCKS = {38: 6, 74: 12, 110: 18, 152: 25}
IMAGENET_BLOCKS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10, "imagenet": 1000}
MISSPELT = {
    "cifar100_feeforward_38": "cifar100_feedforward_38",
    "cifar10_feedfoward_rl_38": "cifar10_feedforward_rl_38",
    "cifar100_feedford_rl_38": "cifar100_feedforward_rl_38",
}


class UnknownArchitecture(ValueError):
    """The catalogue has no architecture of that name."""


@dataclass(frozen=True)
class Architecture:
    """A row of the catalogue. ``sampled`` marks the public code's ``_rl_`` names: the same network, trained by HRL."""

    name: str
    stem: Stem
    block: str
    blocks: tuple[int, ...]
    classes: int
    gates: GateKind | None
    sampled: bool

    def build(self, classes: int | None = None) -> SkipNet:
        """Return the network, freshly initialised; ``classes`` replaces the data set's own number of classes."""
        return SkipNet(
            stem=self.stem,
            block=BLOCKS[self.block],
            blocks=self.blocks,
            classes=classes or self.classes,
            gates=self.gates,
        )

    @property
    def backbone(self) -> tuple[Stem, str, tuple[int, ...]]:
        """What makes two architectures' weights interchangeable, but for the gates and the number of classes."""
        return self.stem, self.block, self.blocks

    def grows_into(self, other: "Architecture") -> bool:
        """Whether the other is this one with blocks more, gates aside: no group has fewer, and one has more."""
        kin = (self.stem, self.block, len(self.blocks)) == (other.stem, other.block, len(other.blocks))
        return (
            kin
            and self.blocks != other.blocks
            and all(few <= many for few, many in zip(self.blocks, other.blocks, strict=True))
        )

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images that the architecture was made for."""
        return 32 if self.stem == "cifar" else 224


def first_blocks(groups: tuple[int, ...]) -> list[int]:
    """Return the index of each group's first block in the flat list of blocks."""
    return [sum(groups[:group]) for group in range(len(groups))]


def cifar_architecture(data: str, routing: str, sampled: bool, depth: int) -> Architecture:
    gates: dict[str, GateKind | None] = {
        "resnet": None,
        "rnn_gate": "rnn",
        # Paper, section 3.1: FFGate-II for networks of more than 100 layers, FFGate-I for shallower ones.
        "feedforward": "feedforward_2" if depth > 100 else "feedforward_1",
    }
    name = f"{data}_{routing}_{'rl_' if sampled else ''}{depth}"
    return Architecture(name, "cifar", "basic", (CIFAR_BLOCKS[depth],) * 3, CLASSES[data], gates[routing], sampled)


def imagenet_architecture(routing: str, sampled: bool, depth: int) -> Architecture:
    block, blocks = IMAGENET_BLOCKS[depth]
    name = f"imagenet_{routing}_{'rl_' if sampled else ''}{depth}"
    gates: GateKind | None = "rnn" if routing == "rnn_gate" else None
    return Architecture(name, "imagenet", block, blocks, CLASSES["imagenet"], gates, sampled)


def catalogue() -> dict[str, Architecture]:
    """Return every architecture by name."""
    rows = []
    for routing, sampled in (
        ("resnet", False),
        ("rnn_gate", False),
        ("rnn_gate", True),
        ("feedforward", False),
        ("feedforward", True),
    ):
        for data in ("cifar10", "cifar100", "svhn"):
            rows += [cifar_architecture(data, routing, sampled, depth) for depth in CIFAR_BLOCKS]
        if routing != "feedforward":
            rows += [imagenet_architecture(routing, sampled, depth) for depth in IMAGENET_BLOCKS]
    return {row.name: row for row in rows}


def find_architecture(name: str) -> Architecture:
    """Return the architecture called ``name``; the public code's three misspelt names are understood.

    Raises UnknownArchitecture, naming the grammar of names, where there is none.
    """
    found = catalogue().get(MISSPELT.get(name, name))
    if found is None:
        raise UnknownArchitecture(
            f"no architecture is called {name!r}; there are "
            "{cifar10,cifar100,svhn}_{resnet,rnn_gate,rnn_gate_rl,feedforward,feedforward_rl}_{38,74,110,152} "
            "and imagenet_{resnet,rnn_gate,rnn_gate_rl}_{18,34,50,101,152}"
        )
    return found
