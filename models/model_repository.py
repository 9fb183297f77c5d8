"""Find and publish models in a repository on disk, with checkpoint folders <model>/<version>."""

import re
import shutil
from pathlib import Path

from models.architectures import UnknownArchitecture, find_architecture
from models.checkpoint import CONFIG, WEIGHTS, CheckpointError, choose_among, is_version, read_config, version_numbers

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def versions(repository: Path, name: str) -> list[int]:
    """Return the versions of model ``name`` in a repository, ascending.

    Raises CheckpointError for an invalid name.
    """
    if not MODEL_NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is not a valid model name: letters, digits, '_', '-' and '.', at most 100, "
            "beginning with a letter or digit"
        )
    return version_numbers(repository / name)


def model_names(repository: Path) -> set[str]:
    """Return the valid model names in a repository that have a version."""
    names = {folder.parent.name for folder in repository.glob("*/*") if is_version(folder)}
    return {name for name in names if MODEL_NAME.fullmatch(name)}


def models(repository: Path) -> list[str]:
    """Return the models of a repository. The first is the default.

    They are sorted by name, numbers by value (cifar10 before cifar100). Models without gates come last.
    """
    return sorted(model_names(repository), key=lambda name: (is_plain(repository, name), name_order(name), name))


def name_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares the numbers in a name by value and the rest by letters."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def is_plain(repository: Path, name: str) -> bool:
    """Return whether a model's newest version can be read and is a network without gates."""
    try:
        newest = read_config(repository / name / str(max(versions(repository, name))))
        return find_architecture(newest.architecture).gates is None
    except (CheckpointError, UnknownArchitecture):
        return False


def find_version(repository: Path, model: str | None, version: int | None) -> Path:
    """Return the folder of a model's version, by default the newest version of the first of `models`.

    Raises CheckpointError if there is no such version.
    """
    name = model if model is not None else next(iter(models(repository)), None)
    found = versions(repository, name) if name is not None else []
    number = version if version is not None else max(found, default=None)
    if number not in found:
        wanted = f"{name or 'model'}{'' if version is None else f' version {version}'}"
        if found:
            raise CheckpointError(f"{repository} holds no {wanted}; {choose_among(found)}")
        there = ", ".join(models(repository)) or "nothing"
        raise CheckpointError(f"{repository} holds no {wanted}, but {there}; see --model-repository")
    return repository / str(name) / str(number)


def require_labels(repository: Path, name: str, labels: list[str]) -> None:
    """Raise CheckpointError if the labels of the model's newest readable version differ.

    Its clients would get unknown labels. Raises CheckpointError also for an invalid name.
    """
    for version in reversed(versions(repository, name)):
        folder = repository / name / str(version)
        try:
            known = read_config(folder).labels
        except CheckpointError:
            continue
        if known != labels:
            raise CheckpointError(f"{folder} has other labels, which clients of {name} rely on: choose another --model")
        return


def publish(folder: Path, repository: Path, name: str) -> Path:
    """Copy a checkpoint into a repository as the model's next version. It appears by one rename.

    Raises CheckpointError for a folder without a checkpoint, and as `require_labels` does.
    """
    require_labels(repository, name, read_config(folder).labels)
    number = max(versions(repository, name), default=0) + 1
    target = repository / name / str(number)
    partial = target.with_name(f".{number}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in (WEIGHTS, CONFIG):
        shutil.copyfile(folder / file, partial / file)
    partial.rename(target)
    return target
