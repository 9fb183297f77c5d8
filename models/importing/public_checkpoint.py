"""Importing the public SkipNet code's checkpoints (github.com/ucbdrive/skipnet): its names to ours."""

import pickle
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.architectures import Architecture, find_architecture, first_blocks
from models.checkpoint import CheckpointError, Config, code_version, fit_state, write_checkpoint
from models.data.datasets import DATASETS, IMAGENET_MEAN, IMAGENET_STD
from models.preprocessing import InputSpec

IMPORTED = "imported"
"""What stands for a stage where a network trained here began with an imported one."""

# The public code normalises CIFAR and SVHN by these (cifar/data.py), which are not quite the data's own deviations.
PUBLIC_MEAN, PUBLIC_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

BEGINNINGS = (b"PK\x03\x04", b"\x80")
"""Of what torch.save writes: a zip file, or in old versions a pickle."""

GATE_PARTS = {
    # RNN gate: a 1x1 convolution after the pooling; feed-forward gates by their layers' names.
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


def import_public(source: Path, arch: str, output: Path) -> Config:
    """Write the checkpoint folder ``output`` from a public checkpoint file; return its config.

    ``arch`` may be misspelt as in the public code. Raises UnknownArchitecture, or CheckpointError where the file
    can't be read without running code or does not hold that architecture.
    """
    architecture = find_architecture(arch)
    saved = read_public(source)
    state = saved.get("state_dict", saved)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{source} holds no weights where they are expected: as `state_dict`, or by themselves")
    network = architecture.build()
    fit_state(network, rename_state(state, architecture), source)
    config = Config(
        architecture=architecture.name,
        labels=public_labels(architecture),
        input=public_input(architecture),
        training={"imported_from": source.name, **public_progress(saved)},
        code=code_version(),
    )
    write_checkpoint(output, network, config)
    return config


def read_public(source: Path) -> dict[str, Any]:
    """Return what a public checkpoint file holds, read without unpickling anything but tensors and plain values."""
    try:
        with source.open("rb") as file:
            if not file.read(4).startswith(BEGINNINGS):
                raise CheckpointError(f"{source} is no PyTorch checkpoint: torch.save writes zip files or pickles")
        saved = torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{source} can't be read: {error.strerror or error}") from error
    # What torch says is not repeated: it advises to load without weights_only.
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise CheckpointError(f"{source} is damaged, or was not written by torch.save") from error
        raise CheckpointError(
            f"{source} was not loaded: it holds an object that could run code, {found[1]}. "
            "Save its state_dict alone, with torch.save, on a machine where you trust it, and import that"
        ) from error
    if not isinstance(saved, dict):
        raise CheckpointError(f"{source} holds a {type(saved).__name__}, where a dict with `state_dict` is expected")
    return saved


def rename_state(state: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Return a public state dict under this project's names and shapes, without what has no effect."""
    blocks = first_blocks(architecture.blocks)
    renamed = {}
    for public, tensor in state.items():
        key = public.removeprefix("module.")
        # The projection is stored twice, once inside its block; counts of batches matter to no answer.
        if key.endswith("num_batches_tracked") or re.match(r"group\d+_ds\d+\.", key):
            continue
        name = rename(key, architecture, blocks)
        if name is not None:
            renamed[name] = flatten_pointwise(name, tensor.float())
    return renamed


def rename(key: str, architecture: Architecture, blocks: list[int]) -> str | None:
    """Return our name of a public key, or None for the last block's gate, whose answer nobody reads.

    A key that is not understood is kept as it is, so that fitting the state names it.
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
        return f"blocks.{index}.{block_part(found[5])}"
    if index == sum(architecture.blocks) - 1:
        return None
    return f"gates.{index}.{gate_part(found[5], architecture)}"


def block_part(part: str) -> str:
    if part.startswith("downsample."):
        return "shortcut." + part.removeprefix("downsample.")
    layer, _, rest = part.partition(".")
    return f"residual.{RESIDUAL_INDEX[layer]}.{rest}" if layer in RESIDUAL_INDEX else part


def gate_part(part: str, architecture: Architecture) -> str:
    for public, name in GATE_PARTS.items():
        if part.startswith(public):
            indices = FEATURE_INDEX.get(str(architecture.gates), {})
            with suppress(KeyError):  # The gates of another architecture.
                return name.format_map(indices) + part.removeprefix(public)
    return part


def flatten_pointwise(name: str, tensor: Tensor) -> Tensor:
    """Return the 1x1 convolutions that the public code applies to pooled maps as the matrices that they are."""
    if tensor.ndim == 4 and name.split(".")[-2] in ("embedding", "head", "projection"):
        return tensor.flatten(1)
    return tensor


def public_labels(architecture: Architecture) -> list[str]:
    row = DATASETS.get(architecture.name.split("_")[0])
    return list(row.classes if row and row.classes else map(str, range(architecture.classes)))


def public_input(architecture: Architecture) -> InputSpec:
    size = architecture.image_size
    if architecture.stem == "imagenet":
        return InputSpec(
            height=size,
            width=size,
            resize=256,
            interpolation="bilinear",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )
    return InputSpec(height=size, width=size, resize=size, mean=PUBLIC_MEAN, std=PUBLIC_STD)


def public_progress(saved: dict[str, Any]) -> dict[str, float]:
    """Return what a public checkpoint says of its training, as plain numbers."""
    return {key: float(saved[key]) for key in ("iter", "epoch", "best_prec1") if key in saved}
