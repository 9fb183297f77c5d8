"""The labels of an image folder whose classes a checkpoint knows under its own labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.datasets import find_dataset
from models.data.source import Source, read_source
from models.errors import UserError
from tests.models.data.parquet_files import CIFAR10, write_parquet


def folder_of(tmp_path: Path, *classes: str) -> Source:
    for name in classes:
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("L", (32, 32)).save(tmp_path / "val" / name / "0.png")
    return read_source(find_dataset("imagefolder"), "test", tmp_path)


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (["ship", "cat", "dog"], [1, 0]),  # The folders are cat and ship.
        (["cat", "ship"], [0, 1]),
        (["a feline", "a vessel"], [0, 1]),  # Reworded labels in the same order.
    ],
)
def test_an_image_folder_is_labelled_by_class_name(tmp_path: Path, labels: list[str], numbers: list[int]) -> None:
    source = folder_of(tmp_path, "ship", "cat").labelled_as(labels)
    assert [source.image(index)[1] for index in range(2)] == numbers
    assert source.select([1]).image(0)[1] == numbers[1]


@pytest.mark.parametrize("labels", [["cat", "vessel"], ["a feline", "a vessel", "a dog"]])
def test_a_folder_with_unknown_classes_is_refused(tmp_path: Path, labels: list[str]) -> None:
    with pytest.raises(UserError, match=f"is none of the checkpoint's labels, which are {', '.join(labels)}"):
        folder_of(tmp_path, "ship", "cat").labelled_as(labels)


def test_a_data_set_of_the_hub_keeps_its_numbers(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", np.zeros((20, 32, 32, 3), np.uint8), list(range(20)))
    source = read_source(CIFAR10, "test", tmp_path).labelled_as([str(label) for label in range(10)])
    assert [source.image(index)[1] for index in range(20)] == list(range(20))
