"""A teacher's answers: its logits for every training image, given once and kept in a file for whoever learns."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.atomic_file import whole_file
from models.data.augmentation import normalise
from models.data.datasets import DatasetRow

ANSWERS = "answers.safetensors"
CHUNK = 250


class AnswersError(ValueError):
    """A file of answers can't be used; the message says what to do."""


@torch.no_grad()
def give_answers(network: Callable[[Tensor], Tensor], pixels: Tensor, row: DatasetRow) -> Tensor:
    """Return a teacher's logits [N, classes] for images uint8 [N, 3, H, W]: the means over an image and its mirror."""
    answers = []
    for start in range(0, len(pixels), CHUNK):
        images = normalise(pixels[start : start + CHUNK], row.mean, row.std)
        mirrored = images.flip(3).contiguous(memory_format=torch.channels_last)
        answers.append((network(images).float() + network(mirrored).float()) / 2)
    return torch.cat(answers)


def write_answers(file: Path, answers: Tensor, dataset: str, network: str) -> None:
    """Write the answers of a wide network for all training images of a data set, in its order."""
    with whole_file(file) as kept:
        kept.write(save({"answers": answers.half().contiguous()}, {"dataset": dataset, "network": network}))


def read_answers(file: Path, dataset: str, images: int, classes: int) -> Tensor:
    """Return the answers float32 [images, classes]; raises AnswersError where they are of other images or NaN."""
    try:
        with safe_open(file, "pt") as found:
            of = (found.metadata() or {}).get("dataset")
            answers: Tensor = found.get_tensor("answers").float()
    except (OSError, SafetensorError) as error:
        raise AnswersError(
            f"{file} can't be read as a teacher's answers ({error}); delete it and train the teacher again"
        ) from error
    if of != dataset or answers.shape != (images, classes):
        raise AnswersError(
            f"{file} holds answers for {len(answers)} images of {of} in {answers.shape[-1]} classes, not for {images} "
            f"of {dataset} in {classes}; delete it, or name others"
        )
    if not answers.isfinite().all():
        raise AnswersError(f"{file} holds NaN or infinity: its teacher failed; delete it and train the teacher again")
    return answers
