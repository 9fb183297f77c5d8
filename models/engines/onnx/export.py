"""Export a checkpoint as an ONNX file for other runtimes."""

import json
from pathlib import Path

import onnx

from models.checkpoint import Checkpoint
from models.engines.folding import fold
from models.engines.onnx.graph import build_graph, set_default_threshold
from models.errors import UserError
from models.macs import Mode
from models.persistence.atomic_file import whole_file


def export(checkpoint: Checkpoint, path: Path, mode: Mode = "branch") -> None:
    """Write ``checkpoint`` to ``path`` as one file of standard ONNX. A failed export leaves no partial file.

    Inputs and outputs are those of `build_graph`. The input ``thresholds`` is optional and defaults to the checkpoint's
    execute threshold. The model's metadata hold the labels, the preprocessing and that threshold.
    Raises UserError if ``path`` is a folder or its parent is missing, and OSError if it cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the file to write, for instance {path / 'network.onnx'}")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} into")
    config = checkpoint.config
    model = build_graph(fold(checkpoint.network), config.input.height, config.input.width, mode)
    if checkpoint.network.gate_kind is not None:
        set_default_threshold(model, config.execute_threshold)
    model.doc_string = (
        "A residual network that skips blocks image by image (SkipNet). `thresholds`: a block is executed if its "
        "gate's probability is greater. 0 executes every block, 1 only the first."
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
