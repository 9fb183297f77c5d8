"""The images of a run: their size and normalisation, training batches, and validation."""

import math
from collections.abc import Iterator, Sequence, Sized
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from models.architectures import Architecture
from models.checkpoint import read_config
from models.data.augmentation import crop_centre, normalise
from models.data.batches import Batches, MemoryBatches, StreamedBatches
from models.data.datasets import DatasetInfo
from models.data.image_folder import FolderImages
from models.data.source import Source
from models.data.validation_split import (
    find_files,
    has_validation_folder,
    split_positions,
    stratified_positions,
    validation_folder,
)
from models.errors import UserError
from models.evaluation.metrics import BATCH, Metrics, evaluate_network, prepared_batches
from models.network import SkipNet
from models.preprocessing import InputSpec
from models.training.distributed.group import join_rows, share
from models.training.recipes import Recipe
from models.training.setup.options import JobOptions

IN_MEMORY = 4 << 30
"""In bytes. A larger data set is decoded during training."""
VALIDATION_SHARE, LEAST_VALIDATION, MOST_VALIDATION = 0.2, 2, 2000
"""Validation images of a folder of images: share of each class, least of a class, most in total.
"""


def with_normalisation(dataset: DatasetInfo, options: JobOptions) -> DatasetInfo:
    """Return the data set with the mean and deviation of the options, or else of the checkpoint to start from."""
    known = dataset if options.init is None else read_config(options.init).input
    return replace(dataset, mean=options.mean or known.mean, std=options.std or known.std)


def check_size(architecture: Architecture, size: int) -> None:
    """Raise UserError if a block's map is one pixel, since batch norm cannot compute the variance of a single value."""
    shrinks = 4 if architecture.stem == "cifar" else 32
    if architecture.gates is not None and size <= shrinks:
        raise UserError(
            f"images of {size} pixels are too small for {architecture.name}: its last maps would be one pixel; "
            f"set a --size above {shrinks}"
        )


def choose_input(architecture: Architecture, dataset: DatasetInfo, options: JobOptions) -> InputSpec:
    """Return the network's input. Fine-tuning keeps that of the checkpoint to start from, scaled to --size."""
    if options.init is None or not options.finetunes:
        return input_spec(dataset, options.size or (dataset.size if dataset.uniform else architecture.image_size))
    known = read_config(options.init).input
    sides = {}
    if options.size is not None:
        scale = options.size / known.height
        sides = {"height": options.size, "width": options.size, "resize": round(known.resize * scale)}
    return known.model_copy(update={**sides, "mean": dataset.mean, "std": dataset.std})


def choose_images(source: Source, options: JobOptions) -> tuple[Source, Source, dict[str, Any]]:
    """Return the training images, the validation images, and what the training record says about the split."""
    if not options.splits_folder:
        train, validation = split_positions(source, options.held_out, options.limit)
        return source.select(train), source.select(validation), {}
    if not isinstance(source.examples, FolderImages):
        raise UserError(f"recipe {options.recipe} needs a folder of images: name one with --data, or set --held-out")
    if has_validation_folder(source):
        found = validation_folder(source)
        assert isinstance(found.examples, FolderImages)
        return source, found, {"validation_folder": found.examples.folder.name}
    train, validation = recorded_positions(source, options) or stratified_positions(
        source, VALIDATION_SHARE, LEAST_VALIDATION, MOST_VALIDATION
    )
    files = tuple(source.examples.paths[source.positions[index]] for index in validation)
    stride = 1 if options.limit is None else math.ceil(len(train) / options.limit)
    return source.select(train[::stride]), source.select(validation), {"validation_files": files}


def recorded_positions(source: Source, options: JobOptions) -> tuple[list[int], list[int]] | None:
    """Return the split of the checkpoint to start from if it was trained on images of the same folder."""
    if options.init is None or options.data is None:
        return None
    training = read_config(options.init).training
    if training.validation_files is None or training.data != str(options.data.resolve()):
        return None
    validation = find_files(source, training.validation_files)
    return sorted(set(range(len(source))) - set(validation)), validation


def input_spec(dataset: DatasetInfo, size: int) -> InputSpec:
    # ImageNet networks are evaluated on the central 7/8 of an image (224 of 256 pixels).
    resize = size if dataset.uniform else round(size * 8 / 7)
    return InputSpec(height=size, width=size, resize=resize, mean=dataset.mean, std=dataset.std)


def make_batches(train: Source, spec: InputSpec, recipe: Recipe, options: JobOptions, device: torch.device) -> Batches:
    if recipe.batch > len(train):
        raise UserError(f"{len(train)} training images do not fill a batch of {recipe.batch}; set --batch")
    if not fits_memory(train, spec):
        return StreamedBatches(train, spec, recipe.batch, options.seed, device, options.workers, share())
    images, labels = pixels(train, spec.resize)
    return MemoryBatches(images, labels, train.dataset, spec.height, recipe.batch, options.seed, device, share())


def check_shares(recipes: Sequence[Recipe], validation: Sized, processes: int) -> None:
    """Raise UserError if the processes of a run cannot have equal shares of a batch, or a validation image each."""
    for recipe in recipes:
        if processes > 1 and recipe.batch % (2 * processes):
            raise UserError(
                f"{processes} processes cannot share a batch of {recipe.batch} in pairs of images: "
                f"set --batch to a multiple of {2 * processes}"
            )
    if len(validation) < processes:
        raise UserError(f"{len(validation)} validation images are too few for {processes} processes; set --held-out")


def share_of_validation(validation: Source) -> Source:
    """Return the validation images that this process measures."""
    own = share()
    return validation if own.size == 1 else validation.select(range(own.rank, len(validation), own.size))


# These are the training and validation images of one run. The next run in the process may split them differently.
@lru_cache(maxsize=2)
def pixels(source: Source, side: int) -> tuple[Tensor, Tensor]:
    return source.in_memory(side)


def validate(network: SkipNet, validation: Source, spec: InputSpec, device: torch.device) -> Metrics:
    """Return the metrics on the validation images of all processes. ``validation`` are those of this process."""
    return evaluate_network(network, evaluation_batches(validation, spec, device), join_rows)


def evaluation_batches(source: Source, spec: InputSpec, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised images and labels, in order and without augmentation."""
    if not fits_memory(source, spec):
        for batch, truth in prepared_batches(source, spec):
            yield batch.to(device), truth
        return
    stored, labels = pixels(source, spec.resize)
    for start in range(0, len(stored), BATCH):
        batch = crop_centre(stored[start : start + BATCH].to(device), spec.height)
        yield normalise(batch, spec.mean, spec.std), labels[start : start + BATCH]


def fits_memory(source: Source, spec: InputSpec) -> bool:
    """Return whether the resized images, as uint8, fit into memory."""
    return len(source) * 3 * spec.resize**2 <= IN_MEMORY
