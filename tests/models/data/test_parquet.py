"""Data sets in the schema of the Hugging Face hub, read from local Parquet files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.datasets import DATASETS, find_dataset
from models.data.parquet import TableImages, class_names, import_datasets
from models.data.source import read_source
from models.data.validation_split import split_positions
from models.errors import UserError
from tests.models.data.parquet_files import CIFAR10, packs, read_images, write_parquet


def with_columns(folder: Path, image: str, label: str) -> Path:
    write_parquet(folder / "train.parquet", np.zeros((1, 32, 32, 3), np.uint8), [0], (image, label))
    return folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_parquet_in_the_hubs_schema(name: str, tmp_path: Path, pixels: np.ndarray) -> None:
    dataset = DATASETS[name]
    for part in dataset.train_splits:
        write_parquet(
            tmp_path / f"{part}.parquet", pixels, list(range(20)), (dataset.image_column, dataset.label_column)
        )
    images, labels = read_source(dataset, "train", tmp_path).in_memory(32)
    assert images.dtype == torch.uint8 and len(images) == 20 * len(dataset.train_splits)
    np.testing.assert_array_equal(images[:20].permute(0, 2, 3, 1).numpy(), pixels)
    assert labels[:20].tolist() == list(range(20))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"test.parquet of .* cannot be read \(.*\); copy it again"):
        read_source(CIFAR10, "test", tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent", "is not a folder"),
        (lambda folder: folder, r"has no split 'train'.*train\.parquet"),
        (lambda folder: with_columns(folder, "a", "b"), "has a, b"),
    ],
)
def test_data_that_cannot_be_read_says_what_to_do(make, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        read_source(CIFAR10, "train", make(tmp_path))


def test_an_unknown_data_set_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="svhn"):
        find_dataset("cifar")


def test_an_unreachable_hub_suggests_a_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'cifar10' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UserError, match=r"Couldn't reach .* or name a local folder of its files with --data"):
        read_source(CIFAR10, "train", None)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", np.zeros((1, 8, 8, 3), np.uint8), [0])
    with pytest.raises(UserError, match=r"image 0 of .*train\.parquet has 8x8 pixels; images of cifar10 have 32x32"):
        read_source(CIFAR10, "train", tmp_path).in_memory(32)


def test_validation_images_are_not_training_images(tmp_path: Path, pixels: np.ndarray) -> None:
    write_parquet(tmp_path / "train.parquet", pixels, list(range(20)))
    source = read_source(CIFAR10, "train", tmp_path)
    train, held_out = split_positions(source, 5)
    assert (len(train), len(held_out)) == (15, 5)
    assert sorted(train + held_out) == list(range(20))
    with pytest.raises(UserError, match="--held-out 20 takes all of the 20"):
        split_positions(source, 20)


def test_cifar_10_is_read_exactly(tmp_path: Path) -> None:
    images, labels = read_images("cifar10", "test")
    write_parquet(tmp_path / "test.parquet", images[:200], labels[:200].tolist())
    read, truth = read_source(CIFAR10, "test", tmp_path).in_memory(32)
    np.testing.assert_array_equal(read.permute(0, 2, 3, 1).numpy(), images[:200])
    np.testing.assert_array_equal(truth.numpy(), labels[:200])
    assert read_source(CIFAR10, "test", tmp_path).classes[3] == "cat"


def test_cifar_100_keeps_its_class_names(tmp_path: Path) -> None:
    dataset = find_dataset("cifar100")
    images, labels = read_images("cifar100", "test")
    write_parquet(tmp_path / "test.parquet", images[:20], labels[:20].tolist(), ("img", "fine_label"))
    source = read_source(dataset, "test", tmp_path)
    assert source.classes == packs().classes("cifar100")
    assert isinstance(source.examples, TableImages)
    carried = source.examples.table.cast_column("fine_label", import_datasets().ClassLabel(num_classes=100))
    assert class_names(carried, dataset) == source.classes
