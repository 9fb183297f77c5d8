"""The split of the training images into training and validation images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.data.batches import generator
from models.data.datasets import VALIDATION_IMAGES, DatasetInfo
from models.data.image_folder import FolderImages, find_split
from models.data.source import TEST_SPLITS, VALIDATION_SPLITS, Source, read_source
from models.errors import UserError
from models.persistence.training_record import TrainingRecord

SPLIT_SEED = 0
"""The seed of the split. It is the same for every run, so that runs with different seeds can be compared."""


def split_positions(source: Source, validation_images: int, limit: int | None = None) -> tuple[list[int], list[int]]:
    """Return the positions of the training images and of the validation images.

    The validation images depend only on the number of images in the source. ``limit`` bounds the length of both
    lists. Raises UserError if no image is left to train on.
    """
    if len(source) <= validation_images:
        raise UserError(
            f"--held-out {validation_images} takes all of the {len(source)} training images for validation: "
            "set a smaller --held-out"
        )
    shuffled = shuffled_positions(source)
    return sorted(shuffled[validation_images:][:limit]), sorted(shuffled[:validation_images][:limit])


def validation_source(source: Source, training: TrainingRecord) -> Source:
    """Return the validation images of a checkpoint, given its training record.

    ``source`` are the training images. An imported checkpoint does not record its split. Then the images are the
    validation images of a run here. Raises UserError if the recorded images no longer exist.
    """
    if training.validation_files is not None and isinstance(source.examples, FolderImages):
        return source.select(find_files(source, training.validation_files))
    if training.validation_folder is not None:
        return validation_folder(source)
    count = VALIDATION_IMAGES if training.validation_images is None else training.validation_images
    return source.select(sorted(shuffled_positions(source)[:count]))


def shuffled_positions(source: Source) -> list[int]:
    """Return all positions of a source in a fixed random order, the validation images first."""
    return torch.randperm(len(source), generator=generator(SPLIT_SEED)).tolist()


def find_files(source: Source, files: Sequence[str]) -> list[int]:
    """Return the positions in a folder's source of those of the files that exist.

    Raises UserError if none does.
    """
    assert isinstance(source.examples, FolderImages)
    wanted = set(files)
    found = [index for index, position in enumerate(source.positions) if source.examples.paths[position] in wanted]
    if not found:
        raise UserError(
            f"none of the {len(files)} validation images, such as {files[0]}, is in {source.examples.folder}: "
            "name the folder that the network was trained on with --data"
        )
    return found


def has_validation_folder(source: Source) -> bool:
    """Return whether a folder of validation images is beside the folder of the training images."""
    examples = source.examples
    return isinstance(examples, FolderImages) and find_split(examples.folder.parent, VALIDATION_SPLITS) is not None


def validation_folder(source: Source) -> Source:
    """Return the validation images from the folder beside the training images ``source``, with its labels.

    Raises UserError if the folder no longer exists, or has a class that ``source`` lacks.
    """
    assert isinstance(source.examples, FolderImages)
    found = read_source(source.dataset, "validation", source.examples.folder.parent)
    assert isinstance(found.examples, FolderImages)
    numbers = []
    for name in found.examples.classes:
        if name not in source.examples.classes:
            raise UserError(f"{found.examples.folder / name} has no training images: add some, or remove the folder")
        number = source.examples.classes.index(name)
        numbers.append(number if source.numbers is None else source.numbers[number])
    return replace(found, classes=source.classes, numbers=tuple(numbers))


def stratified_positions(source: Source, share: float, least: int, most: int) -> tuple[list[int], list[int]]:
    """Return the positions of the training images and of the validation images of a folder of images.

    Each class gives the ``share`` of its images for validation, and at least ``least``. In total there are at most
    about ``most``. The choice depends only on the images in the folder.
    """
    assert isinstance(source.examples, FolderImages)
    share = min(share, most / len(source))
    labels = source.examples.labels[np.asarray(source.positions)]
    shuffled = np.asarray(shuffled_positions(source))
    validation: list[int] = []
    for label in range(len(source.examples.classes)):
        own = shuffled[labels[shuffled] == label]
        validation += own[: max(least, round(share * len(own)))].tolist()
    return sorted(set(range(len(source))) - set(validation)), sorted(validation)


def find_data(dataset: DatasetInfo, training: TrainingRecord) -> Path | None:
    """Return the folder of the images that a checkpoint was trained on, or None for the hub.

    Raises UserError if the images are not on the hub and their folder no longer exists.
    """
    if training.data is None or training.dataset != dataset.name:
        return None
    folder = Path(training.data)
    if folder.is_dir():
        return folder
    if dataset.hub:
        return None
    raise UserError(
        f"the images of the training were in {folder}, which no longer exists: name their folder with --data"
    )


def has_test_images(training: TrainingRecord, data: Path | None) -> bool:
    """Return whether images apart from those of training and validation are expected in ``data``.

    There are none if fine-tuning split a folder of images without splits.
    """
    return training.validation_files is None or data is None or find_split(data, TEST_SPLITS) is not None
