"""Reading a data set through the Hugging Face ``datasets`` library, from the hub or from local files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.data.datasets import DatasetRow
from models.errors import UserError
from models.preprocessing import InputSpec, fit

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

TEST_SPLITS = ("test", "validation", "val")


@dataclass(frozen=True, eq=False)
class Source:
    """One split: rows of an image and a label, decoded when asked for. ``numbers`` are the classes' labels, where those
    are not the data set's own.
    """

    rows: "Dataset"
    row: DatasetRow
    classes: list[str]
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> "tuple[Image.Image, int]":
        """Return image ``index`` as a PIL image in RGB, and its label."""
        entry = self.rows[index]
        label = int(entry[self.row.label_column])
        return entry[self.row.image_column].convert("RGB"), label if self.numbers is None else self.numbers[label]

    def select(self, indices: list[int]) -> "Source":
        """Return the source of the rows ``indices`` only."""
        return replace(self, rows=self.rows.select(indices))

    def labelled_as(self, labels: Sequence[str]) -> "Source":
        """Return the source with each class labelled by the place of its name among a checkpoint's ``labels``.

        An image folder numbers the classes that it has, which need not be all, in the order of their names. Where none
        of the names is a label, as of folders whose labels were worded anew, they stand for them in order. Raises
        UserError where some are no labels, or all are none and not as many. Other data sets number their classes once
        and for all.
        """
        if self.row.hub:
            return self
        unknown = [name for name in self.classes if name not in labels]
        if not unknown:
            return replace(self, numbers=tuple(labels.index(name) for name in self.classes))
        if len(unknown) < len(self.classes) or len(self.classes) != len(labels):
            raise UserError(
                f"the class {unknown[0]!r} is none of the checkpoint's labels, which are {', '.join(labels)}: "
                "name the folders of images by them"
            )
        return self

    def in_memory(self, side: int) -> tuple[Tensor, Tensor]:
        """Return all images, uint8 [N, 3, side, side], and labels, int64 [N].

        An image of another size is resized and its centre square taken, as the service does; raises UserError where
        the data set's images are all of one size and this one isn't.
        """
        square = InputSpec(height=side, width=side, resize=side, mean=self.row.mean, std=self.row.std)
        pixels = np.empty((len(self), side, side, 3), np.uint8)
        labels = np.empty(len(self), np.int64)
        for index in range(len(self)):
            image, labels[index] = self.image(index)
            if self.row.uniform and image.size != (self.row.size, self.row.size):
                raise UserError(
                    f"image {index} of {self.row.name} is {image.size[0]}x{image.size[1]} pixels, "
                    f"where all are to be {self.row.size}x{self.row.size}"
                )
            pixels[index] = np.asarray(fit(image, square))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def read_source(row: DatasetRow, split: str, data: Path | None) -> Source:
    """Return split ``split`` ("train" or "test") of a data set.

    ``data`` is None for the hub, or a folder: of parquet files in the hub's schema (``train.parquet``,
    ``test.parquet``, or ``train-*.parquet``), or of images (``train/CLASS/*``, ``val/CLASS/*``).

    Raises UserError where there is nothing to read.
    """
    datasets = import_datasets()
    names = row.train_splits if split == "train" else (row.test_split,)
    if data is None:
        if not row.hub:
            raise UserError("an image folder is read from a folder of yours: name it with --data")
        parts = [load_from_hub(datasets, row, name) for name in names]
    elif not data.is_dir():
        raise UserError(f"{data} is not a folder; --data names a folder of parquet files or of images")
    else:
        parts = [read_folder(datasets, data, name) for name in names]
    rows = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    missing = {row.image_column, row.label_column} - set(rows.column_names)
    if missing:
        raise UserError(
            f"{row.name} should have the columns {row.image_column} and {row.label_column}, "
            f"but {data or row.hub} has {', '.join(rows.column_names)}"
        )
    rows = rows.cast_column(row.image_column, datasets.Image())
    return Source(rows, row, class_names(rows, row))


def load_from_hub(datasets: Any, row: DatasetRow, split: str) -> "Dataset":
    try:
        return datasets.load_dataset(row.hub, row.subset, split=split)
    except ConnectionError as error:
        raise UserError(f"{error}: try again, or name a local folder of its files with --data") from error


def read_folder(datasets: Any, data: Path, split: str) -> "Dataset":
    """Return a split of a local folder: parquet files by name, else an image folder of that name."""
    names = TEST_SPLITS if split in TEST_SPLITS else (split,)
    for name in names:
        files = sorted(str(file) for file in (*data.glob(f"{name}.parquet"), *data.glob(f"{name}-*.parquet")))
        try:
            if files:
                return datasets.load_dataset("parquet", data_files={name: files}, split=name)
            if (data / name).is_dir():
                # Left to itself the library takes a split from the files' names: ILSVRC2012_val_1.JPEG for validation.
                folder = str(data / name)
                return datasets.load_dataset("imagefolder", data_dir=folder, data_files={name: "**"}, split=name)
        except (ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"{name} of {data} can't be read ({error}); copy it again") from error
    raise UserError(
        f"{data} has no split {split!r}: expected {' or '.join(f'{name}.parquet' for name in names)} "
        f"or a folder of images {' or '.join(f'{name}/' for name in names)}"
    )


def class_names(rows: "Dataset", row: DatasetRow) -> list[str]:
    """Return the data set's class names, else those that the data carries, else the numbers of its labels."""
    if row.classes:
        return list(row.classes)
    feature = rows.features[row.label_column]
    if hasattr(feature, "names"):
        return list(feature.names)
    return [str(label) for label in range(1 + max(rows[row.label_column]))]


def import_datasets() -> Any:
    """Return the ``datasets`` module, quiet; raises UserError where the training extra is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("reading data sets needs the training extra: pip install '.[training]'") from error
    datasets.disable_progress_bars()
    return datasets
