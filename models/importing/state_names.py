"""Translate the parameter names of the public SkipNet code (github.com/ucbdrive/skipnet) to the names used here."""

import re
from contextlib import suppress

from torch import Tensor

from models.architectures import Architecture, first_blocks

GATE_PARTS = {
    # An RNN gate is a 1x1 convolution after the pooling. The parts of feed-forward gates have names.
    "1.": "embedding.",
    "conv1.": "features.{conv1}.",
    "bn1.": "features.{bn1}.",
    "conv2.": "features.{conv2}.",
    "bn2.": "features.{bn2}.",
    "linear_layer.": "head.",
}
FEATURE_INDEX = {
    "feedforward_1": {"conv1": 1, "bn1": 2, "conv2": 4, "bn2": 5},
    "feedforward_2": {"conv1": 0, "bn1": 1},
}
RESIDUAL_INDEX = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
PLAIN_PARTS = {
    "conv1.": "stem.0.",
    "bn1.": "stem.1.",
    "fc.": "head.",
    "control.proj.": "controller.projection.",
}


def rename_state(state: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Return a public state dict with the names and shapes used here, in float32, without unused tensors."""
    blocks = first_blocks(architecture.blocks)
    renamed = {}
    for key, tensor in state.items():
        # The public code stores each projection twice, once inside its block.
        if key.endswith("num_batches_tracked") or re.match(r"group\d+_ds\d+\.", key):
            continue
        name = rename_key(key, architecture, blocks)
        if name is not None:
            renamed[name] = flatten_pointwise(name, tensor.float())
    return renamed


def rename_key(key: str, architecture: Architecture, blocks: list[int]) -> str | None:
    """Return the name of a public key, or None for the gate after the last block, whose output is unused.

    An unknown key is returned unchanged, so that the error about wrong weights names it.
    """
    for public, name in PLAIN_PARTS.items():
        if key.startswith(public):
            return name + key.removeprefix(public)
    if key.startswith("control.rnn."):
        return "controller.rnn." + key.removeprefix("control.rnn.").removesuffix("_l0")
    found = re.fullmatch(r"(?:group(\d+)_(layer|gate)|layer(\d+)\.)(\d+)\.(.+)", key)
    group = int(found[1] or found[3]) if found else 0
    if not found or not 1 <= group <= len(blocks):
        return key
    index = blocks[group - 1] + int(found[4])
    if found[2] != "gate":
        return f"blocks.{index}.{rename_block_part(found[5])}"
    if index == sum(architecture.blocks) - 1:
        return None
    return f"gates.{index}.{rename_gate_part(found[5], architecture)}"


def rename_block_part(part: str) -> str:
    """Return the name of a part of a block."""
    if part.startswith("downsample."):
        return "shortcut." + part.removeprefix("downsample.")
    layer, _, rest = part.partition(".")
    return f"residual.{RESIDUAL_INDEX[layer]}.{rest}" if layer in RESIDUAL_INDEX else part


def rename_gate_part(part: str, architecture: Architecture) -> str:
    """Return the name of a part of a gate."""
    for public, name in GATE_PARTS.items():
        if part.startswith(public):
            indices = FEATURE_INDEX.get(str(architecture.gates), {})
            with suppress(KeyError):  # The part belongs to another kind of gate.
                return name.format_map(indices) + part.removeprefix(public)
    return part


def flatten_pointwise(name: str, tensor: Tensor) -> Tensor:
    """Return the 1x1 convolutions that follow a pooling as matrices."""
    if tensor.ndim == 4 and name.split(".")[-2] in ("embedding", "head", "projection"):
        return tensor.flatten(1)
    return tensor
