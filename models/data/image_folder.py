"""Read a folder of images: each folder in ``train/`` is a class, and all images below it belong to that class."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from models.errors import UserError

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
FileId = tuple[int, int]


class FolderImages:
    """The images of a split, as paths relative to its folder, and their labels."""

    def __init__(
        self, folder: Path, classes: list[str], paths: list[str], labels: list[int], skipped: Counter[str]
    ) -> None:
        self.folder, self.classes, self.paths, self.skipped = folder, classes, paths, skipped
        self.labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, position: int) -> str:
        return str(self.folder / self.paths[position])

    def read(self, position: int) -> tuple[bytes, int]:
        return (self.folder / self.paths[position]).read_bytes(), int(self.labels[position])


def find_split(data: Path, names: Sequence[str]) -> Path | None:
    """Return the first folder of these names in ``data``."""
    return next((data / name for name in names if (data / name).is_dir()), None)


def read_image_folder(folder: Path, least_classes: int) -> FolderImages:
    """Return the images of a split's folder.

    Symbolic links are followed and hidden files are ignored. Files without the suffix of an image are counted. Class
    names are converted to Unicode's composed form (NFC).

    Raises UserError if there are fewer than ``least_classes`` classes, a class has no image, or something beside the
    class folders looks like images.
    """
    skipped: Counter[str] = Counter()
    found: dict[str, list[str]] = {}
    for name in class_folders(folder, skipped):
        label = class_name(folder, name)
        if label in found:
            raise UserError(f"{folder} has two folders called {label!r} in different Unicode forms: merge them")
        found[label] = class_images(folder, name, skipped)
    check_class_count(folder, list(found), least_classes)
    classes = sorted(found)
    numbers = {label: number for number, label in enumerate(classes)}
    # The order is that of the paths, on which the validation split depends.
    images = sorted((path, numbers[label]) for label, paths in found.items() for path in paths)
    return FolderImages(folder, classes, [path for path, _ in images], [label for _, label in images], skipped)


def class_folders(folder: Path, skipped: Counter[str]) -> list[str]:
    """Return the names of the class folders, and count other files in ``skipped``."""
    names = []
    for entry in scan(folder):
        suffix = suffix_of(entry.name)
        if entry.is_dir():
            names.append(entry.name)
        elif not entry.is_file():
            raise UserError(f"{entry.path} is a broken symbolic link: repair or remove it")
        elif suffix in SUFFIXES:
            raise UserError(f"{entry.path} is beside the class folders: move it into the folder of its class")
        elif suffix in ARCHIVES:
            raise UserError(f"{entry.path} is an archive beside the class folders: unpack or remove it")
        else:
            skipped[suffix] += 1
    return names


def class_name(folder: Path, name: str) -> str:
    """Return a folder's name as a label.

    Raises UserError if it is not valid Unicode.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the class folder {name!r} in {folder} is not named in UTF-8: rename it") from error
    return unicodedata.normalize("NFC", name)


def class_images(folder: Path, name: str, skipped: Counter[str]) -> list[str]:
    """Return the paths of a class's images relative to ``folder``.

    Raises UserError if there are none.
    """
    images, others = [], Counter[str]()
    for path in files_below(folder / name, f"{name}/", ()):
        suffix = suffix_of(path)
        if suffix in SUFFIXES:
            images.append(path)
        else:
            others[suffix] += 1
    skipped.update(others)
    if images:
        return images
    if not others:
        raise UserError(f"the class folder {folder / name} is empty: add images, or remove it")
    suffixes = ", ".join(f"{suffix} ({count:,})" for suffix, count in others.most_common(5))
    raise UserError(
        f"the class folder {folder / name} has no image that can be read, only {suffixes}: convert its images to JPEG "
        "or PNG, or remove it"
    )


def files_below(folder: Path, prefix: str, above: tuple[FileId, ...]) -> Iterator[str]:
    """Yield the files in a folder and the folders in it, each path after ``prefix``. Links are followed."""
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in above:
        raise UserError(f"{folder} is a link to a folder that contains it: remove it")
    for entry in scan(folder):
        if entry.is_dir():
            yield from files_below(folder / entry.name, f"{prefix}{entry.name}/", (*above, identity))
        else:
            yield prefix + entry.name


def scan(folder: Path) -> list["os.DirEntry[str]"]:
    """Return the entries of a folder except hidden files and macOS's archive metadata.

    Raises UserError.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}") from error


def suffix_of(path: str) -> str:
    return Path(path).suffix.lower() or "no suffix"


def check_class_count(folder: Path, classes: list[str], least: int) -> None:
    """Raise UserError if there are too few classes."""
    if not classes:
        raise UserError(f"{folder} has no class folders: sort its images into a folder for each class")
    if len(classes) >= least:
        return
    [only] = classes
    inner = sorted(entry.name for entry in scan(folder / only) if entry.is_dir())
    hint = f". If the classes are {', '.join(inner[:5])}, move these folders up into {folder}" if inner else ""
    raise UserError(f"{folder} has only the class {only!r}, and a classifier needs two: add a folder for each{hint}")
