"""What lies in a model repository's folder: models, their versions, and the files by which a new one is seen."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from service.repository.loading import LoadError

Files = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and time of change in ns of a checkpoint's files: what tells a new version from an old."""


def scan(folder: Path, names: Collection[str] | None = None) -> dict[str, list[int]]:
    """Return the models in a repository, or those of ``names`` in their order, and their versions, ascending; a model
    has at least one numbered folder.

    Raises OSError or LoadError where the folder can't be read.
    """
    from models.checkpoint import model_names

    found = {name: versions_of(folder, name) for name in (model_names(folder) if names is None else names)}
    # One may have been moved away in between.
    return {name: versions for name, versions in found.items() if versions}


def files_of(folder: Path) -> Files:
    """Return what the files of a version's checkpoint are now; its card is none of them."""
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
    # Imports torch, which must not keep the server from binding its socket.
    from models.checkpoint import models

    return models(folder)


def versions_of(folder: Path, name: str) -> list[int]:
    """Return a model's versions; raises LoadError for a name that could leave the folder, or one that can't be read."""
    from models.checkpoint import CheckpointError, versions

    try:
        return versions(folder, name)
    except (CheckpointError, OSError) as error:
        raise LoadError(str(error)) from error
