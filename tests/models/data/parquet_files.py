"""Parquet files in the schema of the Hugging Face hub, with given images or real ones."""

import importlib.util
import io
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from models.data.datasets import find_dataset
from tests.research import shared

CIFAR10 = find_dataset("cifar10")


def write_parquet(
    path: Path, pixels: np.ndarray, labels: list[int], columns: tuple[str, str] = ("img", "label")
) -> None:
    rows = []
    for image in pixels:
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG")
        rows.append({"bytes": content.getvalue(), "path": None})
    images = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({columns[0]: images, columns[1]: labels}), path)


def packs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("packs", shared("data/packs.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def read_images(dataset: str, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the real images [N, 32, 32, 3] of a split and their labels [N]; the first 1,000 of a training split."""
    pixels, labels = packs().read(dataset, split)
    count = None if split == "test" else 1000
    return pixels[:count].copy(), labels[:count].copy()


def write_cifar10(folder: Path, train: int, test: int) -> None:
    """Write the first real images of each split in the hub's schema."""
    for name, count in (("train", train), ("test", test)):
        pixels, labels = read_images("cifar10", name)
        write_parquet(folder / f"{name}.parquet", pixels[:count], labels[:count].tolist())
