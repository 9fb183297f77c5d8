"""The training images that a run holds out: the same ones for every seed, so that runs can be compared."""

from collections.abc import Mapping
from typing import Any

import torch

from models.data.batches import generator
from models.data.source import DataError, Source

SEED, HELD_OUT = 0, 5000


def split_positions(source: Source, held_out: int, limit: int | None = None) -> tuple[list[int], list[int]]:
    """Return which images to train on and which are held out, ``limit`` of each at most: the same for every seed."""
    if len(source) <= held_out:
        raise DataError(f"{len(source)} training images leave none beside the {held_out} of --held-out")
    order = held_out_first(source)
    return sorted(order[held_out:][:limit]), sorted(order[:held_out][:limit])


def held_out_source(source: Source, training: Mapping[str, Any]) -> Source:
    """Return the training images that a checkpoint has never seen, by what its config says of its ``training``.

    Where that says nothing, as of an imported checkpoint, the images are those that a run here would hold out.
    """
    return source.select(sorted(held_out_first(source)[: training.get("held_out_images", HELD_OUT)]))


def held_out_first(source: Source) -> list[int]:
    """Return the training images in an order whose beginning is what runs hold out."""
    return torch.randperm(len(source), generator=generator(SEED)).tolist()
