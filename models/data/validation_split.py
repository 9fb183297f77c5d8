"""The split of the training images into training and validation images."""

import torch

from models.data.batches import generator
from models.data.datasets import VALIDATION_IMAGES
from models.data.source import Source
from models.errors import UserError
from models.persistence.training_record import TrainingRecord

SPLIT_SEED = 0
"""The same for every run, so that runs with different seeds can be compared."""


def split_positions(source: Source, validation_images: int, limit: int | None = None) -> tuple[list[int], list[int]]:
    """Return the positions of the training images and of the validation images.

    The validation images depend only on the number of images in the source. ``limit`` bounds the length of both
    lists. Raises UserError where no image is left to train on.
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

    An imported checkpoint does not tell its split. Then the images are those that a run here would validate on.
    """
    count = VALIDATION_IMAGES if training.validation_images is None else training.validation_images
    return source.select(sorted(shuffled_positions(source)[:count]))


def shuffled_positions(source: Source) -> list[int]:
    """Return all positions of a source in a fixed random order that begins with the validation images."""
    return torch.randperm(len(source), generator=generator(SPLIT_SEED)).tolist()
