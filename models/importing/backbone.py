"""Find the architecture of a ResNet by its weights under torchvision's names. Refuse other networks with their name."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from models.architectures import IMAGENET_BLOCKS, Architecture, find_architecture
from models.errors import UserError

Names = Mapping[str, Tensor]
LAYER = re.compile(r"layer(\d+)\.(\d+)\.")
PUBLIC = re.compile(r"group\d+_layer\d+\.|blocks\.\d+\.")
"""The names of the architectures' parts in the public SkipNet code and in this package."""


def dimensions(state: Names, key: str) -> tuple[int, ...]:
    """Return the shape of a tensor, or () if it is missing."""
    return tuple(state[key].shape) if key in state else ()


def any_name(pattern: str) -> Callable[[Names], bool]:
    found = re.compile(pattern)
    return lambda state: any(found.search(key) for key in state)


def grouped(state: Names) -> bool:
    """Return whether the 3x3 convolution of a bottleneck is grouped: it reads fewer channels than its input has."""
    shape = dimensions(state, "layer1.0.conv2.weight")
    return "layer1.0.conv3.weight" in state and len(shape) == 4 and shape[0] != shape[1]


def wide(state: Names) -> bool:
    shape = dimensions(state, "layer1.0.conv1.weight")
    return "layer1.0.conv3.weight" in state and len(shape) == 4 and shape[0] != 64


def strided_projection(state: Names) -> bool:
    """Return whether a projection's convolution follows an average pooling, which has no weights."""
    return any(re.search(r"downsample\.1\.weight$", key) and value.ndim == 4 for key, value in state.items())


KINDS: dict[str, Callable[[Names], bool]] = {
    "a deep stem of three convolutions (ResNet-C, -D, -S, -T)": any_name(r"^(conv1|stem)\.\d+\."),
    "anti-aliased downsampling": any_name(r"\.filt$|\.aa\."),
    "squeeze-and-excitation or another attention module": any_name(r"^layer.*\.(se|attn|eca|gc|fc1|fc2)\."),
    "average pooling in its projections (ResNet-D)": strided_projection,
    "grouped convolutions (ResNeXt)": grouped,
    "wider blocks (Wide ResNet)": wide,
}
"""Parts of a ResNet that no engine here computes, and how they are recognised."""


def recognise(state: Names, source: str) -> Architecture:
    """Return the plain ResNet with ImageNet's stem whose weights, under torchvision's names, are ``state``.

    torchvision, timm and the public SkipNet code use these names for it. Raises UserError for every other network. The
    message says why, and names the nearest network that can be imported.
    """
    counts = count_blocks(state)
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    for kind, has in KINDS.items():
        if has(state):
            raise refusal(source, f"has {kind}", nearest(block, counts))
    if not counts or any_name(PUBLIC.pattern)(state):
        raise UserError(
            f"{source} holds no ResNet under the names of torchvision, timm or transformers, but "
            f"{', '.join(list(state)[:3])}; name its architecture with --arch if it is a SkipNet, else choose "
            f"{nearest(block, counts)}"
        )
    if not any(key.endswith("bn1.running_mean") for key in state):
        raise refusal(source, "has no batch norm", nearest(block, counts))
    stem = dimensions(state, "conv1.weight")
    if stem != (64, 3, 7, 7):
        reason = f"has another stem than a 7x7 convolution of RGB images ({'x'.join(map(str, stem)) or 'none'})"
        raise refusal(source, reason, nearest(block, counts))
    depth = next((depth for depth, found in IMAGENET_BLOCKS.items() if found == (block, counts)), None)
    if depth is None:
        blocks = ", ".join(map(str, counts))
        raise refusal(source, f"has {blocks} {block} blocks, which is no ResNet's depth", nearest(block, counts))
    if "fc.weight" not in state or "fc.bias" not in state:
        raise refusal(source, "has no classifier (fc.weight, fc.bias)", f"{nearest(block, counts)} with its classifier")
    return find_architecture(f"imagenet_resnet_{depth}")


def refusal(source: str, reason: str, remedy: str) -> UserError:
    return UserError(f"{source} {reason}, which cannot be imported; the nearest that can is {remedy}")


def count_blocks(state: Names) -> tuple[int, ...]:
    """Return the number of blocks in each group."""
    last: dict[int, int] = {}
    for key in state:
        if found := LAYER.match(key):
            last[int(found[1])] = max(last.get(int(found[1]), 0), int(found[2]) + 1)
    return tuple(last[group] for group in sorted(last))


def nearest(block: str = "bottleneck", counts: tuple[int, ...] = (3, 4, 6, 3)) -> str:
    """Return the libraries' name of the plain ResNet with the same kind of block and the nearest number of blocks."""
    same = {depth: sum(blocks) for depth, (kind, blocks) in IMAGENET_BLOCKS.items() if kind == block}
    depth = min(same, key=lambda each: abs(same[each] - sum(counts)))
    return f"resnet{depth} (torchvision, timm) or microsoft/resnet-{depth} (transformers)"
