"""The check of a folder of images before fine-tuning: files that are read, left out or refused."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.datasets import find_dataset
from models.data.source import Source, read_source
from models.data.validation_split import stratified_positions
from models.errors import UserError
from models.finetuning.folder_check import check_images
from tests.models.data.test_image_folder import write_classes

FOLDER = find_dataset("imagefolder")
CAT = "cat: 8 training images, 2 validation images"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes with ten images each."""
    write_classes(tmp_path / "photos", cat=10, dog=10)
    return tmp_path / "photos"


def sources(photos: Path) -> tuple[Source, Source]:
    """Return training images and validation images: two of each class."""
    source = read_source(FOLDER, "train", photos)
    train, validation = stratified_positions(source, 0.0, least=2, most=len(source))
    return source.select(train), source.select(validation)


def check(photos: Path, skip_damaged: bool = False) -> str:
    return "\n".join(check_images(*sources(photos), 32, skip_damaged))


def replace_with(mode: str, kind: str, suffix: str) -> Callable[[Path], None]:
    """Return a change that replaces an image of the class cat by one of another mode and format."""

    def change(photos: Path) -> None:
        (photos / "cat" / "0.png").unlink()
        Image.new(mode, (40, 30)).save(photos / "cat" / f"0{suffix}", kind)

    return change


def sixteen_bits(photos: Path) -> None:
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(photos / "cat" / "0.png")


def nested(photos: Path) -> None:
    (photos / "cat" / "2024" / "may").mkdir(parents=True)
    (photos / "cat" / "0.png").rename(photos / "cat" / "2024" / "may" / "0.png")


def hidden(photos: Path) -> None:
    (photos / "cat" / ".DS_Store").write_bytes(b"no image")
    (photos / "cat" / "._0.png").write_bytes(b"no image")
    (photos / ".thumbnails").mkdir()


def linked(photos: Path) -> None:
    (photos / "cat" / "0.png").rename(photos.parent / "elsewhere.png")
    (photos / "cat" / "0.png").symlink_to(photos.parent / "elsewhere.png")


@pytest.mark.parametrize(
    "change",
    [
        nested,
        hidden,
        linked,
        sixteen_bits,
        replace_with("L", "JPEG", ".JPG"),
        replace_with("CMYK", "JPEG", ".jpeg"),
        replace_with("RGBA", "PNG", ".PNG"),
        replace_with("P", "GIF", ".gif"),
        replace_with("I;16", "TIFF", ".TIF"),
        replace_with("1", "PNG", ".png"),
    ],
    ids=lambda change: change.__qualname__.partition(".")[0],
)
def test_an_unusual_image_is_counted(change: Callable[[Path], None], photos: Path) -> None:
    change(photos)
    assert CAT in check(photos)
    assert "left out" not in check(photos)


def test_a_class_may_have_any_name(photos: Path) -> None:
    (photos / "cat").rename(photos / unicodedata.normalize("NFD", "Kätzchen 猫"))
    assert unicodedata.normalize("NFC", "  Kätzchen 猫: 8 training images") in check(photos)


def test_files_that_are_not_images_are_named_with_the_reason(photos: Path) -> None:
    for name in ("notes.txt", "raw/0.NEF", "README"):
        (photos / "cat" / name).parent.mkdir(exist_ok=True)
        (photos / "cat" / name).write_bytes(b"")
    (photos / "labels.csv").write_bytes(b"")
    lines = check(photos).splitlines()
    assert lines[2:] == [
        "left out: 4 files",
        "  cat/README: it has no suffix",
        "  cat/notes.txt: .txt is not the suffix of an image",
        "  cat/raw/0.NEF: .nef is not the suffix of an image",
        "  labels.csv: .csv is not the suffix of an image",
    ]


def test_every_damaged_image_is_named_with_the_reason(photos: Path) -> None:
    (photos / "cat" / "1.png").write_bytes((photos / "cat" / "1.png").read_bytes()[:60])
    (photos / "dog" / "3.png").write_bytes(b"")
    (photos / "dog" / "4.png").unlink()
    (photos / "dog" / "4.png").symlink_to("absent.png")
    os.truncate(photos / "cat" / "0.png", 20)
    with pytest.raises(UserError, match="4 images cannot be read:") as raised:
        check(photos)
    message = str(raised.value)
    reasons = {"cat/0.png": "header", "cat/1.png": "truncated", "dog/3.png": "not a JPEG", "dog/4.png": "No such file"}
    for name, reason in reasons.items():
        [line] = [line for line in message.splitlines() if f"{photos / name}: " in line]
        assert reason in line
    assert message.endswith("or leave them out with --skip-damaged")
    write_more(photos, "dog", 20)
    write_more(photos, "cat", 20)
    lines = check(photos, skip_damaged=True)
    assert "left out as damaged: 4 files" in lines and str(photos / "dog" / "4.png") in lines


def write_more(photos: Path, label: str, count: int) -> None:
    for number in range(10, 10 + count):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(photos / label / f"{number}.png")


def test_a_class_of_few_images_is_refused(photos: Path) -> None:
    (photos / "cat" / "9.png").unlink()
    with pytest.raises(UserError, match=r"needs 10 images of each class, and there are fewer of cat \(9\): add images"):
        check(photos)
