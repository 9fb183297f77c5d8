"""Training batches whose order and augmentation depend on seed, epoch and step only, so that a run can resume."""

import signal
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from models.data.augmentation import PADDING, crop_centre, crop_flip, normalise, random_boxes, random_resized_crop
from models.data.datasets import Augmentation, DatasetInfo
from models.data.share import GLOBAL_BATCH, Share
from models.data.source import Source
from models.errors import UserError
from models.preprocessing import InputSpec, fit, prepare
from models.preprocessing import normalise as normalise_pixels

Batch = tuple[Tensor, Tensor]
PixelBatch = tuple[NDArray[np.uint8], NDArray[np.int64]]


class Batches(Protocol):
    """Batches of normalised images float32 [N, 3, H, W] and labels int64 [N].

    N is the size of a batch, or of this process's share of it (`models.data.share`).
    """

    steps_per_epoch: int

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch ``number`` from step ``start`` on, without an incomplete last one."""
        ...

    def chosen(self, number: int, step: int) -> Tensor:
        """Return the positions [N] in the source of the images in a step of epoch ``number``."""
        ...


def generator(seed: int, *position: int) -> torch.Generator:
    """Return a random generator that depends only on the run's seed and a position (epoch, step) in it."""
    state = seed
    for number in position:
        # Any odd multiplier separates neighbouring positions. This one is 2**64 over the golden ratio.
        state = (state * 0x9E3779B97F4A7C15 + number + 1) % 2**63
    return torch.Generator().manual_seed(state)


@lru_cache(maxsize=4)
def order(image_count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the images in an epoch."""
    return torch.randperm(image_count, generator=generator(seed, epoch))


class MemoryBatches:
    """Batches of a data set that is stored on ``device`` as uint8 and augmented there.

    Images may be larger than ``size``, the side of the network's input. Then the centre or a random box is cropped.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        dataset: DatasetInfo,
        size: int,
        batch: int,
        seed: int,
        device: torch.device,
        share: Share = GLOBAL_BATCH,
    ) -> None:
        self.images, self.labels = images.to(device), labels.to(device)
        self.share = share
        self.dataset, self.size, self.batch, self.seed = dataset, size, batch, seed
        self.steps_per_epoch = len(images) // batch

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, self.steps_per_epoch):
            chosen = self.chosen(number, step).to(self.images.device, non_blocking=True)
            images = self.augment(self.images[chosen], generator(self.seed, number, step))
            yield normalise(images, self.dataset.mean, self.dataset.std), self.labels[chosen]

    def chosen(self, number: int, step: int) -> Tensor:
        return self.share.take(order(len(self.images), self.seed, number)[step * self.batch : (step + 1) * self.batch])

    def augment(self, images: Tensor, random: torch.Generator) -> Tensor:
        if self.dataset.augmentation == "random_resized_crop":
            return random_resized_crop(images, self.size, random, self.share)
        centre = crop_centre(images, self.size)
        return crop_flip(centre, random, self.share) if self.dataset.augmentation == "crop_flip" else centre


class StreamedBatches:
    """Batches of a data set too large for memory: decoded and augmented image by image in worker processes."""

    def __init__(
        self,
        source: Source,
        spec: InputSpec,
        batch: int,
        seed: int,
        device: torch.device,
        workers: int,
        share: Share = GLOBAL_BATCH,
    ) -> None:
        self.source, self.spec, self.batch, self.share = source, spec, batch, share
        self.seed, self.device, self.workers = seed, device, workers
        self.steps_per_epoch = len(source) // batch

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        steps = [self.chosen(number, step).tolist() for step in range(start, self.steps_per_epoch)]
        images = AugmentedImages(self.source, self.spec, self.seed, number)
        loader = DataLoader(
            images, batch_sampler=steps, num_workers=self.workers, collate_fn=unchanged, worker_init_fn=ignore_sigterm
        )
        for result in loader:
            if isinstance(result, UserError):
                raise result
            pixels, labels = result
            inputs = torch.from_numpy(normalise_pixels(pixels, self.spec))
            yield (
                inputs.to(self.device, memory_format=torch.channels_last),
                torch.from_numpy(labels).to(self.device),
            )

    def chosen(self, number: int, step: int) -> Tensor:
        return self.share.take(order(len(self.source), self.seed, number)[step * self.batch : (step + 1) * self.batch])


class AugmentedImages(torch.utils.data.Dataset[PixelBatch | UserError]):
    """The augmented images of one epoch. The augmentation depends only on seed, epoch and image."""

    def __init__(self, source: Source, spec: InputSpec, seed: int, epoch: int) -> None:
        self.source, self.spec, self.seed, self.epoch = source, spec, seed, epoch

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> PixelBatch | UserError:
        """Return pixels uint8 [batch, H, W, 3] and labels of a batch, or the error if it failed.

        Workers send NumPy arrays through a pipe. Tensors would go through shared memory, of which a container has
        64 MiB. An exception that is raised in a worker would reach the user as a traceback.
        """
        pixels = np.empty((len(indices), self.spec.height, self.spec.width, 3), np.uint8)
        labels = np.empty(len(indices), np.int64)
        try:
            for place, index in enumerate(indices):
                image, labels[place] = self.source.image(index, self.spec.resize)
                random = generator(self.seed, self.epoch, index)
                pixels[place] = np.asarray(augment(image, self.source.dataset.augmentation, self.spec, random))
        except UserError as error:
            return error
        return pixels, labels


def unchanged(batch: Any) -> Any:
    """Return a batch as the data set made it, in place of DataLoader's own collation."""
    return batch


def ignore_sigterm(_: int) -> None:
    """Ignore SIGTERM in a worker. torchrun signals workers too, but the training process ends them after its step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class PreparedImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Network inputs float32 [3, H, W] and labels, prepared as in the service."""

    def __init__(self, source: Source, spec: InputSpec) -> None:
        self.source, self.spec = source, spec

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.source.image(index, self.spec.resize)
        return torch.from_numpy(prepare(image, self.spec)), label


def augment(image: Image.Image, augmentation: Augmentation, spec: InputSpec, random: torch.Generator) -> Image.Image:
    """Return the augmented image at the spec's height and width."""
    if augmentation == "random_resized_crop":
        return resized_box(image, spec, random)
    return shifted(image, spec, random) if augmentation == "crop_flip" else fit(image, spec)


def resized_box(image: Image.Image, spec: InputSpec, random: torch.Generator) -> Image.Image:
    """Return a random box of the image at the spec's size, flipped in half of the cases."""
    boxes, flips = random_boxes(1, image.width, image.height, random)
    left, top, width, height = boxes[0].tolist()
    size = (spec.width, spec.height)
    crop = image.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips.item() else crop


def shifted(image: Image.Image, spec: InputSpec, random: torch.Generator) -> Image.Image:
    """Return the image at the spec's size, shifted by up to 4 pixels and flipped in half of the cases.

    The border is black.

    This is `crop_flip` for one image.
    """
    left, top = torch.randint(-PADDING, PADDING + 1, (2,), generator=random).tolist()
    crop = fit(image, spec).crop((left, top, left + spec.width, top + spec.height))
    flips = torch.randint(0, 2, (), generator=random).item()
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips else crop
