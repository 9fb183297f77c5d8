"""Writing a checkpoint as ONNX, for runtimes other than this one."""

import json
from pathlib import Path

import onnx

from models.atomic_file import whole_file
from models.checkpoint import Checkpoint
from models.engines.folding import fold
from models.engines.onnx.graph import build_graph
from models.macs import Mode


class ExportError(OSError):
    """There is no file to be written at that path."""


def export(checkpoint: Checkpoint, path: Path, mode: Mode = "branch") -> None:
    """Write ``checkpoint`` to ``path`` as one file of standard ONNX, whole or not at all.

    Inputs and outputs are `build_graph`'s. The model's metadata say what else a caller must know: labels, how
    images are prepared, and the execute threshold that the checkpoint was made for. Raises ExportError where ``path``
    is a folder or in none, and other OSErrors where it can't be written.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder: name the file to write, for instance {path / 'network.onnx'}")
    if not path.parent.is_dir():
        raise ExportError(f"there is no folder {path.parent} to write {path.name} into")
    config = checkpoint.config
    model = build_graph(fold(checkpoint.network), config.input.height, config.input.width, mode)
    model.doc_string = (
        "A residual network that skips blocks image by image (SkipNet). `thresholds`: a block runs where its "
        "gate's probability is greater; 0 runs every block, 1 none but the first."
    )
    metadata = {
        "architecture": config.architecture,
        "labels": json.dumps(config.labels),
        "input": config.input.model_dump_json(),
        "execute_threshold": str(config.execute_threshold),
        "code": config.code,
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    with whole_file(path) as file:
        file.write(model.SerializeToString())
