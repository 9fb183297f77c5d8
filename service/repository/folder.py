"""The folder of a model repository: its models and versions, the files of a version, and folders that are ignored."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from service.repository.loading import LoadError

Files = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and time of change in ns of a checkpoint's files, by which a changed version is recognised."""


def scan(folder: Path, names: Collection[str] | None = None) -> dict[str, list[int]]:
    """Return the models in a repository with their versions, ascending; ``names`` selects and orders the models.

    A model without a version is left out. Raises OSError or LoadError if the folder can't be read.
    """
    from models.checkpoint import model_names

    found = {name: versions_of(folder, name) for name in (model_names(folder) if names is None else names)}
    # A model may have been moved away since its name was read.
    return {name: versions for name, versions in found.items() if versions}


def files_of(folder: Path) -> Files:
    """Return the current state of a version's checkpoint files; its model card is not one of them."""
    from models.checkpoint import CONFIG, WEIGHTS

    found = [(file, file.stat()) for file in (folder / CONFIG, folder / WEIGHTS) if file.exists()]
    return tuple((file.name, stat.st_size, stat.st_mtime_ns) for file, stat in found)


def newest_files(folder: Path) -> dict[tuple[str, int], Files]:
    """Return the newest version of every model and its files."""
    newest = {}
    for name, versions in scan(folder).items():
        with suppress(OSError):  # It is being moved.
            newest[name, versions[-1]] = files_of(folder / name / str(versions[-1]))
    return newest


def models_of(folder: Path) -> list[str]:
    """Return the models in a repository, the one to use by default first."""
    # Imports torch, which must not delay the binding of the server's socket.
    from models.checkpoint import models

    return models(folder)


def versions_of(folder: Path, name: str) -> list[int]:
    """Return a model's versions; raises LoadError if the name can't be a model's or the folder can't be read."""
    from models.checkpoint import CheckpointError, versions

    try:
        return versions(folder, name)
    except (CheckpointError, OSError) as error:
        raise LoadError(str(error)) from error


def ignored(folder: Path) -> dict[Path, str]:
    """Return the folders and files that look like a model or a version but can't be one, with the reason.

    Hidden folders are left out: a version is copied under such a name until it is complete. Raises OSError.
    """
    from models.checkpoint import CONFIG, MODEL_NAME, WEIGHTS, is_version

    found: dict[Path, str] = {}
    for model in subfolders(folder):
        try:
            inner = subfolders(model)
        except OSError:  # Such as lost+found, which only root may read.
            continue
        if not MODEL_NAME.fullmatch(model.name):
            if inner:
                found[model] = (
                    "a model's name has letters, digits, '_', '-' and '.', at most 100, and begins with a letter or "
                    "digit; rename the folder"
                )
            continue
        for version in inner:
            if not is_version(version):
                found[version] = "a version is a whole number without leading zeros, such as 14; rename the folder"
        for file in (model / CONFIG, model / WEIGHTS):
            if file.is_file():
                found[file] = "a checkpoint's files belong into a folder of its version, such as 1; move them there"
    return found


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, by name; none if it does not exist. Raises OSError."""
    entries = sorted(folder.iterdir()) if folder.exists() else []
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
