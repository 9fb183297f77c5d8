"""Training batches whose order and augmentation depend on seed, epoch and step only, so that a run can resume."""

from collections.abc import Iterator
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from models.data.augmentation import crop_flip, normalise
from models.data.catalogue import Augmentation, DatasetRow
from models.data.source import Source
from models.preprocessing import InputSpec, prepare

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """Normalised images float32 [batch, 3, H, W] and labels int64 [batch]."""

    steps_per_epoch: int

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield epoch ``number``'s batches from step ``start`` on; a last, smaller batch is left out."""
        ...


def generator(seed: int, *position: int) -> torch.Generator:
    """Return a random generator that depends on the run's seed and a position (epoch, step) in it only."""
    state = seed
    for number in position:
        # Any odd multiplier keeps neighbouring positions apart; this one is 2**64 over the golden ratio.
        state = (state * 0x9E3779B97F4A7C15 + number + 1) % 2**63
    return torch.Generator().manual_seed(state)


class MemoryBatches:
    """Batches of a small data set that lives on ``device`` as uint8 and is augmented there, a batch at a time."""

    def __init__(
        self, images: Tensor, labels: Tensor, row: DatasetRow, batch: int, seed: int, device: torch.device
    ) -> None:
        self.images, self.labels = images.to(device), labels.to(device)
        self.row, self.batch, self.seed = row, batch, seed
        self.steps_per_epoch = len(images) // batch

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(len(self.images), generator=generator(self.seed, number))
        for step in range(start, self.steps_per_epoch):
            chosen = order[step * self.batch : (step + 1) * self.batch].to(self.images.device)
            images = self.images[chosen]
            if self.row.augmentation == "crop_flip":
                images = crop_flip(images, generator(self.seed, number, step))
            yield normalise(images, self.row.mean, self.row.std), self.labels[chosen]


class StreamedBatches:
    """Batches of a data set too large for memory: decoded and augmented image by image in worker processes."""

    def __init__(
        self, source: Source, spec: InputSpec, batch: int, seed: int, device: torch.device, workers: int
    ) -> None:
        self.source, self.spec, self.batch = source, spec, batch
        self.seed, self.device, self.workers = seed, device, workers
        self.steps_per_epoch = len(source) // batch

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(len(self.source), generator=generator(self.seed, number)).tolist()
        steps = [order[step * self.batch : (step + 1) * self.batch] for step in range(start, self.steps_per_epoch)]
        images = PreparedImages(self.source, self.spec, self.source.row.augmentation, self.seed, number)
        for pixels, labels in DataLoader(images, batch_sampler=steps, num_workers=self.workers):
            yield pixels.to(self.device, memory_format=torch.channels_last), labels.to(self.device)


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
        if self.augmentation == "random_resized_crop":
            image = random_resized_crop(image, self.spec, generator(self.seed, self.epoch, index))
        return torch.from_numpy(prepare(image, self.spec)), label


def random_resized_crop(image: Image.Image, spec: InputSpec, random: torch.Generator) -> Image.Image:
    """Return a random 8 to 100 % of the image's area, sides between 3:4 and 4:3, at the spec's size; flip half.

    Szegedy et al. 2015, section 6: the augmentation that ImageNet's ResNets are trained with.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    area = image.width * image.height * uniform(0.08, 1)
    ratio = 2 ** uniform(-0.415, 0.415)
    width = min(image.width, max(1, round((area * ratio) ** 0.5)))
    height = min(image.height, max(1, round((area / ratio) ** 0.5)))
    left, top = round(uniform(0, image.width - width)), round(uniform(0, image.height - height))
    size = (spec.width, spec.height)
    crop = image.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if uniform(0, 1) < 0.5 else crop
