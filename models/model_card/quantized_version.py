"""Write a quantised checkpoint as a version: the same weights, another config.json and card."""

import os
import re
import shutil
from pathlib import Path

from models.checkpoint import CONFIG, WEIGHTS, Checkpoint, version_numbers, write_config
from models.errors import UserError
from models.model_card.card import CARD, write_card


def write_version(checkpoint: Checkpoint, output: Path | None, link: bool) -> Path:
    """Write ``checkpoint`` to the folder ``output`` and return it. The default is the next version of its model.

    Its weights are copied from the checkpoint's folder, or linked. The card keeps what a person wrote. ``config.json``
    is written last. Raises UserError if the folder exists, or if a checkpoint outside of a repository has no
    ``output``.
    """
    folder = checkpoint.folder
    if output is None:
        if checkpoint.version == 0:
            raise UserError(f"{folder} is not a version of a model: name the folder to write with --output")
        output = folder.parent / str(version_numbers(folder.parent)[-1] + 1)
    if output.exists():
        raise UserError(f"{output} exists already: name another folder with --output")
    output.mkdir(parents=True)
    try:
        if link:
            (output / WEIGHTS).symlink_to(os.path.relpath(folder / WEIGHTS, output))
        else:
            shutil.copyfile(folder / WEIGHTS, output / WEIGHTS)
        if (folder / CARD).is_file():
            title, *rest = (folder / CARD).read_text("utf-8").splitlines(keepends=True)
            title = re.sub(r"version \d+", f"version {output.name}", title)
            (output / CARD).write_text("".join([title, *rest]), "utf-8")
        write_config(output, checkpoint.config)
        write_card(output)
    except BaseException:
        (output / CONFIG).unlink(missing_ok=True)
        shutil.rmtree(output)
        raise
    return output
