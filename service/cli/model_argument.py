"""The argument MODEL of commands: a name in the repository, or the folder of a model or of a checkpoint."""

from pathlib import Path

from models.errors import UserError


def find_checkpoint(model: str, repository: Path, version: int | None = None) -> Path:
    """Return the checkpoint folder of a model, by default of its newest version.

    Raises UserError if there is no such model or version, or ``model`` is already the folder of a version.
    """
    from models.checkpoint import CONFIG
    from models.model_repository import find_version

    folder = Path(model)
    if (folder / CONFIG).is_file():
        if version is not None:
            raise UserError(f"{folder} is the folder of a version: leave --version out, or give the model instead")
        return folder
    if len(folder.parts) > 1 and folder.is_dir():
        return find_version(folder.parent, folder.name, version)
    return find_version(repository, model, version)
