"""Check a folder of images before training: its classes, its images, and the files that are left out."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from models.data.image_folder import SUFFIXES, FolderImages, files_below, scan, suffix_of
from models.data.source import DamagedImage, Source
from models.errors import UserError
from models.machine import available_cpus

LEAST_IMAGES = 10
"""The least images of a class."""
LISTED = 50
"""The most files that a message names."""


def check_images(train: Source, validation: Source, shorter_side: int, skip_damaged: bool) -> list[str]:
    """Decode every image of a run, and return lines about the images for the user.

    Raises UserError if a class has fewer than `LEAST_IMAGES` images, or if an image is damaged and ``skip_damaged`` is
    false. The message names each damaged image.
    """
    damaged = {**find_damaged(train, shorter_side), **find_damaged(validation, shorter_side)}
    if damaged and not skip_damaged:
        raise UserError(
            f"{len(damaged)} images cannot be read:\n{list_lines(describe_damage(damaged))}\n"
            "Replace or remove them, or leave them out with --skip-damaged"
        )
    trained, validated = (Counter(intact_labels(source, damaged)) for source in (train, validation))
    counts = [(label, trained[number], validated[number]) for number, label in enumerate(train.classes)]
    few = [f"{label} ({first + second})" for label, first, second in counts if first + second < LEAST_IMAGES]
    if few:
        raise UserError(
            f"fine-tuning needs {LEAST_IMAGES} images of each class, and there are fewer of {', '.join(few)}: add "
            "images, or remove the class"
        )
    lines = [f"  {label}: {first} training images, {second} validation images" for label, first, second in counts]
    ignored = [f"{path}: {reason}" for path, reason in find_ignored(train)]
    for title, names in (("left out", ignored), ("left out as damaged", describe_damage(damaged))):
        if names:
            lines.append(f"{title}: {len(names)} files\n{list_lines(names)}")
    return lines


def intact_labels(source: Source, damaged: dict[str, str]) -> list[int]:
    """Return the labels of a folder's images without the damaged ones."""
    examples = source.examples
    assert isinstance(examples, FolderImages)
    numbers = np.arange(len(source.classes)) if source.numbers is None else np.asarray(source.numbers)
    return [int(numbers[examples.labels[each]]) for each in source.positions if examples.name(each) not in damaged]


def find_damaged(source: Source, shorter_side: int) -> dict[str, str]:
    """Return the reasons why images cannot be decoded, by the names of their files."""

    def reason(index: int) -> tuple[str, str] | None:
        try:
            source.image(index, shorter_side)
        except DamagedImage as error:
            cause = error.__cause__
            detail = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
            return source.examples.name(source.positions[index]), detail
        return None

    with ThreadPoolExecutor(available_cpus()) as executor:
        return dict(found for found in executor.map(reason, range(len(source))) if found)


def find_ignored(source: Source) -> Iterator[tuple[str, str]]:
    """Yield the files in a split's folder whose names are not those of images, and the reasons."""
    assert isinstance(source.examples, FolderImages)
    folder = source.examples.folder
    for entry in sorted(scan(folder), key=lambda each: each.name):
        paths = sorted(files_below(folder / entry.name, f"{entry.name}/", ())) if entry.is_dir() else [entry.name]
        for path in paths:
            if suffix_of(path) not in SUFFIXES:
                yield path, f"{suffix_of(path)} is not the suffix of an image" if "." in path else "it has no suffix"


def describe_damage(damaged: dict[str, str]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in sorted(damaged.items())]


def list_lines(names: list[str]) -> str:
    """Return names as indented lines: of many names, only the first."""
    lines = [f"  {name}" for name in names[:LISTED]]
    return "\n".join([*lines, f"  and {len(names) - LISTED} more"] if names[LISTED:] else lines)
