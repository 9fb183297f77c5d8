"""Read the folder of a model repository."""

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from service.repository.loading import LoadError
from service.repository.promotion import PROMOTIONS, read_history, usual_version

Files = tuple[tuple[str, int, int], ...]
"""Path without links, size in bytes and time of change in ns of a checkpoint's files.

A changed version is recognised by them. If a link is changed to another file, size and time may be the same.
"""

Beside = Mapping[str, Collection[int]]
"""Versions of each model that are loaded beside the usual one, for a canary or a shadow."""

Wanted = tuple[str, int, bool]
"""A model, a version, and whether it is the usual one."""

BAD_MODEL_NAME = (
    "a model's name has letters, digits, '_', '-' and '.', at most 100, and begins with a letter or digit; rename the "
    "folder"
)
BAD_VERSION = "a version is a whole number without leading zeros, such as 14; rename the folder"
NO_VERSION = "a checkpoint's files belong in a folder of its version, such as 1; move them there"


def current_snapshot(folder: Path) -> Path:
    """Return the folder with the models: the snapshot of the revision main in a hub's cache, else ``folder``.

    The Hugging Face hub's library writes a repository as ``refs``, ``snapshots`` and ``blobs``.
    """
    try:
        commit = (folder / "refs" / "main").read_text().strip()
    except OSError:
        return folder
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else folder


def scan(folder: Path, names: Collection[str] | None = None) -> dict[str, list[int]]:
    """Return the models in a repository with their versions, ascending. ``names`` selects and orders the models.

    A model without a version is left out. Raises OSError or LoadError if the folder cannot be read.
    """
    from models.model_repository import model_names

    found = {name: versions_of(folder, name) for name in (model_names(folder) if names is None else names)}
    # A model may have been moved away since its name was read.
    return {name: versions for name, versions in found.items() if versions}


def files_of(folder: Path, promoted: bool = True) -> Files:
    """Return the current state of a version's checkpoint files. The model card is not one of them.

    With ``promoted``, the file with the model's promotions is one of them: a promoted version is loaded again.
    """
    from models.checkpoint import CONFIG, WEIGHTS

    files = [folder / CONFIG, folder / WEIGHTS, *([folder.parent / PROMOTIONS] if promoted else ())]
    found = [(file, file.stat()) for file in files if file.exists()]
    return tuple((os.path.realpath(file), stat.st_size, stat.st_mtime_ns) for file, stat in found)


def wanted_files(folder: Path, beside: Beside) -> dict[Wanted, Files]:
    """Return the versions to serve and their files: the usual version of every model, and those beside it.

    A model whose promotions cannot be read is left out.
    """
    wanted = {}
    for name, versions in scan(folder).items():
        extra = beside.get(name, ())
        with suppress(LoadError):
            usual = usual_version(read_history(folder / name), versions, extra)
            for version in [each for each in versions if each == usual or each in extra]:
                with suppress(OSError):  # The folder is being moved.
                    files = files_of(folder / name / str(version), version == usual)
                    wanted[name, version, version == usual] = files
    return wanted


def models_of(folder: Path) -> list[str]:
    """Return the models in a repository, the default model first."""
    # Imports torch, which must not delay the binding of the server's socket.
    from models.model_repository import models

    return models(folder)


def versions_of(folder: Path, name: str) -> list[int]:
    """Return a model's versions.

    Raises LoadError if the model's name is invalid or the folder cannot be read.
    """
    from models.checkpoint import CheckpointError
    from models.model_repository import versions

    try:
        return versions(folder, name)
    except (CheckpointError, OSError) as error:
        raise LoadError(str(error)) from error


def ignored(folder: Path) -> dict[Path, str]:
    """Return the paths that look like a model or a version but are not one, with the reason.

    Hidden folders are left out, because a version has such a name while it is copied. Models that cannot be read are
    left out too, because loading them reports the reason.
    """
    found: dict[Path, str] = {}
    for model in subfolders(folder):
        found |= ignored_in_model(model)
    return found


def ignored_in_model(model: Path) -> dict[Path, str]:
    """Return the ignored paths in a model's folder, with the reason."""
    from models.checkpoint import CONFIG, WEIGHTS, is_version
    from models.model_repository import MODEL_NAME

    inner = subfolders(model)
    if not MODEL_NAME.fullmatch(model.name):
        return {model: BAD_MODEL_NAME} if inner else {}
    found = {version: BAD_VERSION for version in inner if not is_version(version)}
    with suppress(OSError):
        found |= {model / file: NO_VERSION for file in (CONFIG, WEIGHTS) if (model / file).is_file()}
    return found


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, by name. Return none if it cannot be read."""
    try:
        return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:  # An example is lost+found, which only root may read.
        return []
