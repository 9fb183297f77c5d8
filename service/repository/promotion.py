"""The version of a model for requests that name none: the promoted one, or else the newest.

The promotions of a model are stored beside its versions, in ``<model>/promoted.json``, so that every replica and every
restart follows them. Before the first promotion there is no such file.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from models.persistence.atomic_file import whole_file
from service.repository.loading import LoadError

PROMOTIONS = "promoted.json"
Change = Callable[[Sequence[int], Sequence[int]], list[int]]
"""A change of the promotions: from them and the versions in the folder, ascending, to the new promotions."""
KEPT = 20
"""The number of promotions that are kept for rollbacks."""


class Promotions(BaseModel):
    """The content of PROMOTIONS: the promoted versions, the current one last.

    If empty, the newest version is served.
    """

    history: list[int]


def read_history(model: Path) -> list[int]:
    """Return the promotions of the model in a folder, the current one last; empty if the newest version is served.

    Raises LoadError.
    """
    file = model / PROMOTIONS
    try:
        return Promotions.model_validate_json(file.read_bytes()).history
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        problem = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise LoadError(
            f"{file} cannot be read: {problem}; write it again with `skipnet promote`, or remove it to serve the "
            "newest version"
        ) from error


def write_history(model: Path, history: Sequence[int]) -> None:
    """Write the promotions of the model in a folder. Raises LoadError."""
    content = Promotions(history=list(history[-KEPT:])).model_dump_json()
    try:
        with whole_file(model / PROMOTIONS) as file:
            file.write(f"{content}\n".encode())
    except OSError as error:
        raise LoadError(
            f"{model / PROMOTIONS} cannot be written: {error.strerror}; run `skipnet promote` or `skipnet rollback` "
            "where the repository can be written"
        ) from error


def usual_version(history: Sequence[int], versions: Sequence[int], beside: Collection[int] = ()) -> int | None:
    """Return the version for requests that name none: the promoted one, else the newest.

    ``versions`` are in the folder, ascending. Those in ``beside`` (canary, shadow) only count if there are no others.
    """
    if history:
        return history[-1]
    return max((version for version in versions if version not in beside), default=max(versions, default=None))


def promote(history: Sequence[int], versions: Sequence[int], version: int | None = None) -> list[int]:
    """Return the promotions after the promotion of ``version``, by default the newest.

    Raises LoadError if there is none.
    """
    if not versions:
        raise LoadError("there is no such model; /models lists the models and versions")
    number = versions[-1] if version is None else version
    if number not in versions:
        raise LoadError(f"there is no version {number}, but {', '.join(map(str, versions))}")
    return [*(each for each in history if each != number), number]


def roll_back(history: Sequence[int], versions: Sequence[int], beside: Collection[int] = ()) -> list[int]:
    """Return the promotions after a rollback to the previous promotion, or else to the previous version in the folder.

    Raises LoadError if there is neither.
    """
    if earlier := [version for version in history[:-1] if version in versions]:
        return earlier
    current = usual_version(history, versions, beside)
    older = [version for version in versions if current is not None and version < current]
    if not older:
        raise LoadError(f"there is no version before {current} to roll back to; /models lists the versions")
    return [older[-1]]
