"""A teacher's logits for every training image, computed once and stored in a file."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.data.augmentation import normalise
from models.data.datasets import DatasetInfo
from models.errors import UserError
from models.persistence.atomic_file import whole_file

CHUNK = 250
"""Images of one forward pass."""
KEY, LEGACY_KEY = "logits", "answers"
"""The tensor's name in the file, and the one in files of earlier versions."""


@torch.no_grad()
def compute_teacher_logits(network: Callable[[Tensor], Tensor], pixels: Tensor, dataset: DatasetInfo) -> Tensor:
    """Return the logits [N, classes] for images uint8 [N, 3, H, W]: the means of an image and its mirror image."""
    logits = []
    for start in range(0, len(pixels), CHUNK):
        images = normalise(pixels[start : start + CHUNK], dataset.mean, dataset.std)
        mirrored = images.flip(3).contiguous(memory_format=torch.channels_last)
        logits.append((network(images).float() + network(mirrored).float()) / 2)
    return torch.cat(logits)


def write_teacher_logits(file: Path, logits: Tensor, dataset: str, network: str) -> None:
    """Write a teacher's logits for all training images of a data set as float16, in the data set's order."""
    with whole_file(file) as opened:
        opened.write(save({KEY: logits.half().contiguous()}, {"dataset": dataset, "network": network}))


def read_teacher_logits(file: Path, dataset: str, count: int, classes: int) -> Tensor:
    """Return the logits float32 [count, classes].

    Raises UserError for a file without logits, with logits of other images, or with NaN.
    """
    try:
        with safe_open(file, "pt") as opened:
            found_dataset = (opened.metadata() or {}).get("dataset")
            logits: Tensor = opened.get_tensor(KEY if KEY in opened.keys() else LEGACY_KEY).float()  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} cannot be read as a teacher's logits ({error}); delete it and train the teacher again"
        ) from error
    if found_dataset != dataset or logits.shape != (count, classes):
        raise UserError(
            f"{file} holds logits for {len(logits)} images of {found_dataset} in {logits.shape[-1]} classes, not for "
            f"{count} of {dataset} in {classes}; delete it, or name another file"
        )
    if not logits.isfinite().all():
        raise UserError(f"{file} holds NaN or infinity: its teacher diverged; delete it and train the teacher again")
    return logits
