"""Training batches whose order and augmentation depend on seed, epoch and step only, so that a run can resume."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from models.data.augmentation import PADDING, crop_centre, crop_flip, normalise, random_boxes, random_resized_crop
from models.data.datasets import Augmentation, DatasetRow
from models.data.source import Source
from models.preprocessing import InputSpec, fit, prepare

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """Normalised images float32 [batch, 3, H, W] and labels int64 [batch]."""

    steps_per_epoch: int

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield epoch ``number``'s batches from step ``start`` on; a last, smaller batch is left out."""
        ...

    def chosen(self, number: int, step: int) -> Tensor:
        """Return which images [batch] the batch of a step of epoch ``number`` has, by their places in the source."""
        ...


def generator(seed: int, *position: int) -> torch.Generator:
    """Return a random generator that depends on the run's seed and a position (epoch, step) in it only."""
    state = seed
    for number in position:
        # Any odd multiplier keeps neighbouring positions apart; this one is 2**64 over the golden ratio.
        state = (state * 0x9E3779B97F4A7C15 + number + 1) % 2**63
    return torch.Generator().manual_seed(state)


@lru_cache(maxsize=4)
def order(images: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which an epoch takes its images."""
    return torch.randperm(images, generator=generator(seed, epoch))


class MemoryBatches:
    """Batches of a data set that lives on ``device`` as uint8 and is augmented there, a batch at a time.

    Images may be larger than ``size``, the side of the network's input: then the centre or a random box is cut out.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, row: DatasetRow, size: int, batch: int, seed: int, device: torch.device
    ) -> None:
        self.images, self.labels = images.to(device), labels.to(device)
        self.row, self.size, self.batch, self.seed = row, size, batch, seed
        self.steps_per_epoch = len(images) // batch

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, self.steps_per_epoch):
            chosen = self.chosen(number, step).to(self.images.device, non_blocking=True)
            images = self.augment(self.images[chosen], generator(self.seed, number, step))
            yield normalise(images, self.row.mean, self.row.std), self.labels[chosen]

    def chosen(self, number: int, step: int) -> Tensor:
        return order(len(self.images), self.seed, number)[step * self.batch : (step + 1) * self.batch]

    def augment(self, images: Tensor, random: torch.Generator) -> Tensor:
        if self.row.augmentation == "random_resized_crop":
            return random_resized_crop(images, self.size, random)
        centre = crop_centre(images, self.size)
        return crop_flip(centre, random) if self.row.augmentation == "crop_flip" else centre


class StreamedBatches:
    """Batches of a data set too large for memory: decoded and augmented image by image in worker processes."""

    def __init__(
        self, source: Source, spec: InputSpec, batch: int, seed: int, device: torch.device, workers: int
    ) -> None:
        self.source, self.spec, self.batch = source, spec, batch
        self.seed, self.device, self.workers = seed, device, workers
        self.steps_per_epoch = len(source) // batch

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        steps = [self.chosen(number, step).tolist() for step in range(start, self.steps_per_epoch)]
        images = PreparedImages(self.source, self.spec, self.source.row.augmentation, self.seed, number)
        for pixels, labels in DataLoader(images, batch_sampler=steps, num_workers=self.workers):
            yield pixels.to(self.device, memory_format=torch.channels_last), labels.to(self.device)

    def chosen(self, number: int, step: int) -> Tensor:
        return order(len(self.source), self.seed, number)[step * self.batch : (step + 1) * self.batch]


class PreparedImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Network inputs of one epoch, augmented with a randomness that depends on seed, epoch and image only."""

    def __init__(
        self,
        source: Source,
        spec: InputSpec,
        augmentation: Augmentation = "none",
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        self.source, self.spec, self.augmentation = source, spec, augmentation
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.source.image(index)
        if self.augmentation != "none":
            augment = resized_box if self.augmentation == "random_resized_crop" else moved
            image = augment(image, self.spec, generator(self.seed, self.epoch, index))
        return torch.from_numpy(prepare(image, self.spec)), label


def resized_box(image: Image.Image, spec: InputSpec, random: torch.Generator) -> Image.Image:
    """Return a random box of the image at the spec's size, flipped in half of the cases."""
    boxes, flips = random_boxes(1, image.width, image.height, random)
    left, top, width, height = boxes[0].tolist()
    size = (spec.width, spec.height)
    crop = image.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips.item() else crop


def moved(image: Image.Image, spec: InputSpec, random: torch.Generator) -> Image.Image:
    """Return the image at the spec's size, moved by up to 4 pixels with black behind it, flipped in half of the cases:
    `crop_flip` of one image.
    """
    left, top = torch.randint(-PADDING, PADDING + 1, (2,), generator=random).tolist()
    crop = fit(image, spec).crop((left, top, left + spec.width, top + spec.height))
    flips = torch.randint(0, 2, (), generator=random).item()
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips else crop
