"""The distillation teacher of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np
from torch import Tensor, nn

from models.checkpoint import read_checkpoint
from models.data.datasets import DatasetInfo, Statistics, find_dataset
from models.data.source import Source
from models.errors import UserError
from models.training.distillation.location import is_network
from models.training.distillation.logits import read_teacher_logits
from models.training.distillation.network import read_teacher
from models.training.recipes import Recipe
from models.training.setup.network import check_labels, check_validation_images
from models.training.setup.options import JobOptions


def find_teacher(
    recipes: list[Recipe], source: Source, positions: Sequence[int], options: JobOptions
) -> nn.Module | Tensor | None:
    """Return the teacher of the recipes, or None if no recipe needs one.

    It is the teacher of --teacher, else the dense network of --init. The result is a network, or the logits in a file
    for the images at ``positions`` of the source.
    """
    if not any(recipe.distillation_weight for recipe in recipes):
        return None
    if is_teacher_file(options.teacher):
        if is_network(options.teacher):
            known = find_dataset(source.dataset.name)
            check_normalisation(options.teacher, known.mean, known.std, source.dataset)
            return read_teacher(options.teacher, source.dataset.name, len(source.classes))
        logits = read_teacher_logits(options.teacher, source.dataset.name, len(source), len(source.classes))
        return logits[list(positions)]
    folder = options.teacher or options.init
    if folder is None:
        raise UserError(f"recipe {options.recipe} needs a teacher: name a dense network's checkpoint with --teacher")
    checkpoint = read_checkpoint(folder)
    if checkpoint.network.gate_kind is not None:
        raise UserError(f"{folder} has gates; recipe {options.recipe} needs a dense teacher: name one with --teacher")
    check_labels(checkpoint, folder, source.classes, options)
    check_validation_images(checkpoint, folder, options)
    check_normalisation(folder, checkpoint.config.input.mean, checkpoint.config.input.std, source.dataset)
    return checkpoint.network.requires_grad_(False)


def is_teacher_file(teacher: Path | None) -> TypeGuard[Path]:
    """Return whether a teacher is a file of `skipnet teach`. A checkpoint is a folder."""
    return teacher is not None and teacher.suffix == ".safetensors"


def check_normalisation(teacher: Path, mean: Statistics, std: Statistics, dataset: DatasetInfo) -> None:
    """Raise UserError if a teacher was trained on images normalised by another mean or deviation."""
    if not np.allclose((mean, std), (dataset.mean, dataset.std), rtol=0, atol=1e-4):
        raise UserError(
            f"{teacher} expects images with mean {mean} and deviation {std}, but --init has {dataset.mean} and "
            f"{dataset.std}: use the teacher's teacher_logits.safetensors, or another --init"
        )
