"""A split of a data set: encoded images with labels, decoded on demand by the same rules as in the service."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.data.datasets import DatasetInfo
from models.data.image_folder import FolderImages, find_split, read_image_folder
from models.data.parquet import find_parquet, load_from_hub, read_parquet
from models.errors import UserError
from models.images.encoded import TRAINING_FORMATS, decode_image
from models.images.errors import ImageError
from models.machine import available_cpus
from models.preprocessing import InputSpec, fit

VALIDATION_SPLITS = ("validation", "val", "valid")
TEST_SPLITS = ("test", *VALIDATION_SPLITS)
SPLIT_NAMES = ("train", "training", "testing", *TEST_SPLITS)
"""Lower-case names of folders that contain a split and are not a class."""


class DamagedImage(UserError):
    """An image of a data set cannot be read. The message names its file."""


class Examples(Protocol):
    """Encoded images with labels. ``skipped`` counts the files that were left out, by suffix."""

    classes: list[str]
    skipped: Counter[str]

    def __len__(self) -> int: ...

    def name(self, position: int) -> str:
        """Return an image's path or another description of its place."""
        ...

    def read(self, position: int) -> tuple[bytes, int]:
        """Return an image's file and the number of its class.

        Raises OSError.
        """
        ...


@dataclass(frozen=True, eq=False)
class Source:
    """A selection of images of a split.

    ``positions`` are indices into ``examples``. If ``numbers`` is given, it maps the classes of ``examples`` to other
    labels. ``damaged`` names the images that were left out because they cannot be read.
    """

    examples: Examples
    dataset: DatasetInfo
    classes: list[str]
    positions: Sequence[int]
    numbers: tuple[int, ...] | None = None
    damaged: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.positions)

    def image(self, index: int, shorter_side: int = 0) -> tuple[Image.Image, int]:
        """Return image ``index`` as upright RGB, and its label.

        ``shorter_side`` lets a large JPEG be decoded at reduced size, as in `models.images.encoded.EncodedImage`.

        Raises DamagedImage.
        """
        position = self.positions[index]
        try:
            data, label = self.examples.read(position)
            image = decode_image(data, shorter_side, TRAINING_FORMATS)
        except (ImageError, OSError) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            raise DamagedImage(
                f"{self.examples.name(position)} cannot be read: {reason}. Replace or remove it, or leave damaged "
                "images out with --skip-damaged"
            ) from error
        return image, label if self.numbers is None else self.numbers[label]

    def select(self, indices: Sequence[int]) -> "Source":
        """Return the source of the images ``indices`` only."""
        return replace(self, positions=[self.positions[index] for index in indices])

    def without_damaged(self, shorter_side: int = 0) -> "Source":
        """Decode every image, and return the source of those that can be decoded."""
        threads = available_cpus()

        def find_damaged(first: int) -> list[int]:
            return [index for index in range(first, len(self), threads) if self.is_damaged(index, shorter_side)]

        with ThreadPoolExecutor(threads) as executor:
            damaged = {index for found in executor.map(find_damaged, range(threads)) for index in found}
        names = tuple(self.examples.name(self.positions[index]) for index in sorted(damaged))
        if len(names) == len(self) > 0:
            raise UserError(f"all {len(self)} images are damaged, among them {names[0]}")
        intact = self.select([index for index in range(len(self)) if index not in damaged])
        return replace(intact, damaged=(*self.damaged, *names))

    def is_damaged(self, index: int, shorter_side: int) -> bool:
        try:
            self.image(index, shorter_side)
        except DamagedImage:
            return True
        return False

    def labelled_as(self, labels: Sequence[str]) -> "Source":
        """Return the source with each class labelled by the position of its name in a checkpoint's ``labels``.

        An image folder numbers only its own classes, in the order of their names. If no name is a label, the folders
        stand for the labels in order, for instance if the labels were reworded. Raises UserError if only some names are
        labels, or if none is a label and the counts differ. Other data sets have fixed numbers.
        """
        if not isinstance(self.examples, FolderImages):
            return self
        names = self.examples.classes
        unknown = [name for name in names if name not in labels]
        if not unknown:
            return replace(self, numbers=tuple(labels.index(name) for name in names))
        if len(unknown) < len(names) or len(names) != len(labels):
            raise UserError(
                f"the class {unknown[0]!r} is none of the checkpoint's labels, which are {', '.join(labels)}: "
                "name the folders of images by them"
            )
        return self

    def in_memory(self, side: int) -> tuple[Tensor, Tensor]:
        """Return all images as uint8 [N, 3, side, side] and labels as int64 [N].

        An image of another size is resized and cropped to its central square, as in the service. Raises UserError if
        the images of the data set all have one size and this one differs.
        """
        square = InputSpec(height=side, width=side, resize=side, mean=self.dataset.mean, std=self.dataset.std)
        pixels = np.empty((len(self), side, side, 3), np.uint8)
        labels = np.empty(len(self), np.int64)
        for index in range(len(self)):
            image, labels[index] = self.image(index, 0 if self.dataset.uniform else side)
            if self.dataset.uniform and image.size != (self.dataset.size, self.dataset.size):
                raise UserError(
                    f"{self.examples.name(self.positions[index])} has {image.size[0]}x{image.size[1]} pixels; images "
                    f"of {self.dataset.name} have {self.dataset.size}x{self.dataset.size}"
                )
            pixels[index] = np.asarray(fit(image, square))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def read_source(dataset: DatasetInfo, split: str, data: Path | None) -> Source:
    """Return split ``split`` ("train", "validation" or "test") of a data set.

    ``data`` is None for the hub. Otherwise it is a folder of parquet files in the hub's schema (``train.parquet`` or
    ``train-*.parquet``) or of images (``train/CLASS/*``, ``val/CLASS/*``). A folder of images without splits
    (``CLASS/*``) is all training images.

    Raises UserError if there is nothing to read.
    """
    names = dataset.train_splits if split == "train" else (dataset.test_split,)
    splits = VALIDATION_SPLITS if split == "validation" else TEST_SPLITS
    if data is None:
        if not dataset.hub:
            raise UserError("an image folder is read from a local folder: name it with --data")
        return all_images(load_from_hub(dataset, names), dataset)
    if data.is_file():
        raise UserError(f"{data} is a file; unpack it if it is an archive, and name the folder with --data")
    if not data.is_dir():
        raise UserError(f"{data} is not a folder; --data names a folder of parquet files or of images")
    choices = [splits if name in TEST_SPLITS else (name,) for name in names]
    files = [find_parquet(data, choice) for choice in choices]
    if all(files):
        return all_images(read_parquet(dataset, [found for found in files if found], data), dataset)
    folder = find_split(data, choices[0])
    if folder is None and split == "train" and not dataset.hub and holds_classes(data):
        folder = data
    if folder is None or len(choices) > 1:
        raise UserError(missing_split(data, choices[files.index([])]))
    source = all_images(read_image_folder(folder, least_classes=2 if split == "train" else 1), dataset)
    # Data sets with fixed classes keep their class numbers.
    return source.labelled_as(dataset.classes) if dataset.classes else source


def holds_classes(data: Path) -> bool:
    """Return whether a folder has folders of which none is named like a split."""
    names = [path.name.lower() for path in data.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return bool(names) and not any(name in SPLIT_NAMES for name in names)


def all_images(examples: Examples, dataset: DatasetInfo) -> Source:
    return Source(examples, dataset, list(dataset.classes) or examples.classes, range(len(examples)))


def missing_split(data: Path, names: Sequence[str]) -> str:
    """Return the error for a folder without a split, with a description of its content."""
    message = (
        f"{data} has no split {names[0]!r}: expected {' or '.join(f'{name}.parquet' for name in names)} "
        f"or a folder of images {' or '.join(f'{name}/' for name in names)} with a folder for each class"
    )
    archives = sorted(file.name for name in names for file in data.glob(f"{name}.*") if file.suffix != ".parquet")
    if archives:
        return f"{message}. Unpack {archives[0]} first"
    folders = sorted(path.name for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))
    return f"{message}. It has the folders {', '.join(folders[:5])}" if folders else message


def describe(*sources: Source) -> str:
    """Return a line about the classes, images and skipped files of a run."""
    first = sources[0]
    images = sum(len(source) for source in sources)
    names = ", ".join(first.classes[:5]) + (", …" if len(first.classes) > 5 else "")
    line = f"data: {images:,} images of {len(first.classes)} classes ({names})"
    if skipped := first.examples.skipped:
        suffixes = ", ".join(f"{suffix} {count:,}" for suffix, count in skipped.most_common(5))
        line += f"; skipped by suffix: {skipped.total():,} ({suffixes})"
    if damaged := [name for source in sources for name in source.damaged]:
        line += f"; skipped as damaged: {len(damaged):,} ({', '.join(damaged[:5])}{', …' if damaged[5:] else ''})"
    return line
