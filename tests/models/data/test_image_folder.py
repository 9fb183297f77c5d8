"""Folders of images: classes, skipped files, and errors."""

import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoint import Config
from models.data.batches import StreamedBatches
from models.data.datasets import find_dataset
from models.data.source import DamagedImage, Source, describe, read_source
from models.errors import UserError
from models.training.setup.data import input_spec
from tests.models.data.parquet_files import write_parquet
from tests.models.images.test_encoded import png, png_chunk

SPEC = input_spec(find_dataset("cifar10"), 32)
FOLDER = find_dataset("imagefolder")


def write_classes(folder: Path, **counts: int) -> None:
    """Write ``counts`` small images into the folder of each class."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for image in range(count):
            Image.new("RGB", (40, 30), (number * 100, image, 0)).save(folder / name / f"{image}.png")


def train_source(data: Path) -> Source:
    return read_source(FOLDER, "train", data)


def test_folders_are_the_classes(tmp_path: Path) -> None:
    for split_name in ("train", "val"):
        for label, colour in (("dark", 10), ("light", 240)):
            (tmp_path / split_name / label).mkdir(parents=True)
            for number in range(3):
                # ImageNet's file names contain "val" in any folder.
                name = f"ILSVRC2012_val_{number}.png" if number else "0.png"
                Image.new("L", (60 + number, 50), colour).save(tmp_path / split_name / label / name)
    assert len(read_source(find_dataset("imagefolder"), "train", tmp_path)) == 6
    source = read_source(find_dataset("imagefolder"), "test", tmp_path)
    assert source.classes == ["dark", "light"] and len(source) == 6
    image, light = source.image(5)
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (240, 240, 240) and light == 1
    spec = input_spec(source.dataset, 48)
    batches = StreamedBatches(source, spec, batch=4, seed=1, device=torch.device("cpu"), workers=0)
    [(first, _)] = batches.epoch(0)
    [(again, _)] = batches.epoch(0)
    assert first.shape == (4, 3, 48, 48) and torch.equal(first, again)


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    write_classes(tmp_path / "elsewhere", cat=2, dog=3)
    write_classes(tmp_path / "train", bird=1)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).symlink_to(tmp_path / "elsewhere" / name)
    source = train_source(tmp_path)
    assert source.classes == ["bird", "cat", "dog"] and len(source) == 6
    assert [source.image(index)[1] for index in range(6)] == [0, 1, 1, 2, 2, 2]


def test_folders_in_a_class_folder_belong_to_the_class(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_classes(tmp_path / "train" / name, photos=2, scans=1)
    source = train_source(tmp_path)
    assert source.classes == ["cat", "dog"] and len(source) == 6


def test_files_are_chosen_by_suffix_and_the_others_counted(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=2, dog=2)
    cat = tmp_path / "train" / "cat"
    (cat / "0.png").rename(cat / "0.PNG")
    for name in ("photo.JPEG", "phone.HEIC", "web.avif", "scan.tif"):
        Image.new("RGB", (40, 30)).save(cat / name)
    for name in ("a.cr2", "b.CR2", "c.jxl", "notes", ".hidden.png", ".DS_Store"):
        (cat / name).write_bytes(b"")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label")
    write_classes(tmp_path / "train" / ".ipynb_checkpoints", cat=1)
    write_classes(tmp_path / "train" / "dog" / ".thumbnails", cat=1)
    source = train_source(tmp_path)
    assert source.classes == ["cat", "dog"] and len(source) == 8
    assert {source.image(index)[0].size for index in range(8)} == {(40, 30)}
    assert source.examples.skipped == {".cr2": 2, ".jxl": 1, "no suffix": 1, ".csv": 1}
    line = "data: 8 images of 2 classes (cat, dog); skipped by suffix: 5 (.cr2 2, "
    assert describe(source).startswith(line)


@pytest.mark.parametrize("name", ["[1]", "a*b", "a::b", "a#b", "a?b", "dogs and cats", "%20", "{x}"])
def test_any_path_is_read(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / name / "train", **{"cat": 1, name: 2})
    source = train_source(tmp_path / name)
    assert set(source.classes) == {"cat", name} and len(source) == 3
    source.image(2)


@pytest.mark.parametrize("name", ["[1]", "a*b", "a?b", "a::b"])
def test_parquet_files_below_a_pattern_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    write_parquet(tmp_path / name / "train.parquet", np.zeros((2, 32, 32, 3), np.uint8), [0, 1])
    with pytest.raises(UserError, match=r"parquet files cannot be read from .*: rename the folder"):
        read_source(find_dataset("cifar10"), "train", tmp_path / name)


@pytest.mark.parametrize("name", ["test", "validation", "val", "valid"])
def test_validation_images_may_be_in_any_of_these_folders(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / name, cat=1)
    assert read_source(FOLDER, "test", tmp_path).classes == ["cat"]


def test_a_folder_of_classes_without_splits_is_all_training_images(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=2, dog=1)
    source = train_source(tmp_path)
    assert source.classes == ["cat", "dog"] and len(source) == 3
    with pytest.raises(UserError, match="has no split 'test'"):
        read_source(FOLDER, "test", tmp_path)


def raw_only(train: Path) -> None:
    write_classes(train, owl=0)
    for number in range(3):
        (train / "owl" / f"{number}.cr2").write_bytes(b"")


def one_class(train: Path) -> None:
    for name in ("cat", "dog"):
        (train / name).rename(train.parent / name)
    write_classes(train / "images", cat=1, dog=1)


def cycle(train: Path) -> None:
    (train / "cat" / "again").symlink_to(train / "cat")


def same_name_twice(train: Path) -> None:
    write_classes(train, **{unicodedata.normalize(form, "café"): 1 for form in ("NFC", "NFD")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train: (train / "owl").mkdir(), r"class folder .*train/owl is empty: add images, or remove it"),
        (raw_only, r"train/owl has no image that can be read, only \.cr2 \(3\): convert"),
        (lambda train: (train / "owl").symlink_to(train / "absent"), r"train/owl is a broken symbolic link"),
        (lambda train: (train / "owl.jpg").write_bytes(b""), r"train/owl\.jpg is beside the class folders: move it"),
        (lambda train: (train / "owl.zip").write_bytes(b""), r"train/owl\.zip is an archive .*: unpack or remove it"),
        (one_class, r"train has only the class 'images', .* If the classes are cat, dog, move these folders up"),
        (cycle, r"train/cat/again is a link to a folder that contains it: remove it"),
        (same_name_twice, r"train has two folders called 'café' in different Unicode forms: merge them"),
    ],
)
def test_a_folder_that_would_lose_images_is_refused(
    change: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write_classes(tmp_path / "train", cat=1, dog=1)
    change(tmp_path / "train")
    with pytest.raises(UserError, match=message):
        train_source(tmp_path)


def test_the_error_for_a_folder_without_train_lists_its_content(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no split 'train': expected train\.parquet or a folder of images train/"):
        train_source(tmp_path)
    write_classes(tmp_path / "Train", cat=1, dog=1)
    write_classes(tmp_path, cat=1, dog=1)
    with pytest.raises(UserError, match="It has the folders Train, cat, dog"):
        train_source(tmp_path)
    (tmp_path / "train.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"Unpack train\.zip first"):
        train_source(tmp_path)
    with pytest.raises(UserError, match=r"train\.zip is a file; unpack it"):
        train_source(tmp_path / "train.zip")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="train has no class folders: sort its images into a folder for each class"):
        train_source(tmp_path)


def huge_png() -> bytes:
    """Return the header of a PNG of 200 megapixels."""
    return png(20_000, 10_000, 8, 2, b"")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:60], "truncated"),
        (lambda _: b"", "it is not a JPEG, .* file, or its header is damaged"),
        (lambda _: huge_png(), "200000000 pixels"),
        (lambda data: data[:30] + b"damaged", "header"),
        (None, "No such file or directory"),
    ],
)
def test_a_damaged_image_is_named_and_can_be_left_out(
    damage: Callable[[bytes], bytes] | None, reason: str, tmp_path: Path
) -> None:
    write_classes(tmp_path / "train", cat=3, dog=3)
    file = tmp_path / "train" / "dog" / "1.png"
    if damage is None:
        file.unlink()
        file.symlink_to("absent.png")
    else:
        file.write_bytes(damage(file.read_bytes()))
    source = train_source(tmp_path)
    with pytest.raises(DamagedImage, match=f"{file} cannot be read: .*{reason}.* with --skip-damaged"):
        source.in_memory(32)
    intact = source.without_damaged(32)
    assert intact.damaged == (str(file),) and len(intact) == 5
    assert intact.positions == [0, 1, 2, 3, 5]
    images, labels = intact.in_memory(32)
    assert len(images) == 5 and labels.tolist() == [0, 0, 0, 1, 1]
    assert describe(intact).endswith(f"; skipped as damaged: 1 ({file})")


def test_a_png_with_megabytes_of_text_is_read(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=1, dog=1)
    text = png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"node " * 500_000))
    (tmp_path / "train" / "cat" / "0.png").write_bytes(png(2, 1, 8, 0, b"\0\x10\x20", text))
    image, _ = train_source(tmp_path).image(0)
    assert [image.getpixel((x, 0)) for x in range(2)] == [(16, 16, 16), (32, 32, 32)]


def test_names_are_the_same_in_any_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_classes(tmp_path / "train", **{decomposed: 1, "tea": 1, "bar": 1})
    source = train_source(tmp_path)
    assert source.classes == ["bar", composed, "tea"]
    for form in (composed, decomposed):
        config = Config(architecture="cifar10_resnet_38", labels=[form, "tea", "bar"], input=SPEC, code="test")
        assert source.labelled_as(config.labels).numbers == (2, 0, 1)
