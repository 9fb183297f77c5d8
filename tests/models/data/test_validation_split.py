"""Validation images of a folder of images: a share of each class or a separate folder, and their record."""

from pathlib import Path

import pytest

from models.data.datasets import find_dataset
from models.data.source import Source, read_source
from models.data.validation_split import (
    find_data,
    has_test_images,
    has_validation_folder,
    stratified_positions,
    validation_folder,
    validation_source,
)
from models.errors import UserError
from models.persistence.training_record import TrainingRecord
from tests.models.data.test_image_folder import write_classes

FOLDER = find_dataset("imagefolder")


def names(source: Source) -> list[str]:
    """Return the paths of a source's images, with the class before the file."""
    return ["/".join(Path(source.examples.name(position)).parts[-2:]) for position in source.positions]


@pytest.mark.parametrize(("share", "most", "cats", "dogs"), [(0.2, 100, 4, 2), (0.5, 100, 10, 2), (0.5, 6, 5, 2)])
def test_each_class_has_its_share(share: float, most: int, cats: int, dogs: int, tmp_path: Path) -> None:
    write_classes(tmp_path, cat=20, dog=4)
    source = read_source(FOLDER, "train", tmp_path)
    train, validation = stratified_positions(source, share, least=2, most=most)
    assert sorted(train + validation) == list(range(24))
    chosen = names(source.select(validation))
    assert [sum(name.startswith(label) for name in chosen) for label in ("cat", "dog")] == [cats, dogs]
    assert stratified_positions(source, share, least=2, most=most)[1] == validation


def test_recorded_files_are_found_among_added_ones(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=4, dog=4)
    source = read_source(FOLDER, "train", tmp_path)
    record = TrainingRecord(validation_files=("cat/3.png", "dog/0.png"), validation_images=2)
    assert names(validation_source(source, record)) == ["cat/3.png", "dog/0.png"]
    write_classes(tmp_path, bird=4)
    grown = read_source(FOLDER, "train", tmp_path)
    assert names(validation_source(grown, record)) == ["cat/3.png", "dog/0.png"]
    (tmp_path / "dog" / "0.png").unlink()
    assert names(validation_source(read_source(FOLDER, "train", tmp_path), record)) == ["cat/3.png"]
    removed = TrainingRecord(validation_files=("owl/0.png",))
    with pytest.raises(UserError, match=r"none of the 1 validation images, such as owl/0\.png, is in"):
        validation_source(grown, removed)


def test_a_folder_of_validation_images_is_used_with_the_labels_of_training(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=3, dog=3, owl=3)
    assert not has_validation_folder(read_source(FOLDER, "train", tmp_path))
    write_classes(tmp_path / "val", owl=1)
    write_classes(tmp_path / "test", cat=2)
    source = read_source(FOLDER, "train", tmp_path)
    assert has_validation_folder(source)
    found = validation_folder(source)
    assert names(found) == ["owl/0.png"] and found.image(0)[1] == 2
    turned = source.labelled_as(["owl", "dog", "cat"])
    assert validation_source(turned, TrainingRecord(validation_folder="val")).image(0)[1] == 0
    write_classes(tmp_path / "val", fox=1)
    with pytest.raises(UserError, match="val/fox has no training images: add some, or remove the folder"):
        validation_folder(source)


def test_the_recorded_folder_of_the_training_is_used(tmp_path: Path) -> None:
    record = TrainingRecord(dataset="imagefolder", data=str(tmp_path), validation_files=("cat/0.png",))
    assert find_data(FOLDER, record) == tmp_path
    assert find_data(find_dataset("cifar10"), record) is None
    assert not has_test_images(record, tmp_path)
    assert has_test_images(TrainingRecord(), tmp_path)
    (tmp_path / "test").mkdir()
    assert has_test_images(record, tmp_path)
    with pytest.raises(UserError, match="which no longer exists: name their folder with --data"):
        find_data(FOLDER, record.model_copy(update={"data": str(tmp_path / "moved")}))
    moved = TrainingRecord(dataset="cifar10", data=str(tmp_path / "moved"))
    assert find_data(find_dataset("cifar10"), moved) is None
