"""Dense engines that a user may install instead: ONNX Runtime in int8, OpenVINO, torch.compile."""

import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.engines.folding import fold
from models.engines.onnx.engine import session_options
from models.engines.onnx.graph import build_graph
from models.engines.protocol import Engine, Routed, plain_output
from models.network import SkipNet

OPENVINO = "openvino"
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def other_engines(checkpoint: Checkpoint, threads: int) -> dict[str, Callable[[], Engine]]:
    """Return the functions that build the dense engines of a plain ResNet on a CPU, by their names in tables.

    Those of OpenVINO are included if it is installed. Its int8 graph is that of ONNX Runtime's static quantisation,
    with a scale for each channel of the weights. The scales are measured on noise, because they do not influence the
    speed.
    """
    makers: dict[str, Callable[[], Engine]] = {
        "onnxruntime, int8": partial(in_onnxruntime, checkpoint, threads),
        "torch.compile": partial(in_torch, checkpoint.network),
    }
    if find_spec(OPENVINO):
        makers["openvino, float32"] = partial(in_openvino, checkpoint, threads, False)
        makers["openvino, int8"] = partial(in_openvino, checkpoint, threads, True)
    return makers


class Dense:
    """An engine that calls a function from images [N, 3, H, W] to logits [N, classes]."""

    device = "cpu"

    def __init__(self, name: str, blocks: int, classify: Run) -> None:
        self.name, self.blocks, self.classify = name, blocks, classify

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """See ``Engine.run``."""
        del thresholds  # A plain ResNet has no gates.
        return plain_output(self.classify(images), self.blocks, "mask")

    def close(self) -> None:
        """See ``Engine.close``."""


def in_torch(network: SkipNet) -> Engine:
    compiled = torch.compile(lambda images: network(images)[0])

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = compiled(torch.from_numpy(images)).numpy()
            return logits

    return Dense("torch.compile", len(network.blocks), classify)


def in_onnxruntime(checkpoint: Checkpoint, threads: int) -> Engine:
    model = quantized_graph(checkpoint).SerializeToString()
    session = onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
        return logits

    return Dense("onnxruntime", len(checkpoint.network.blocks), classify)


def in_openvino(checkpoint: Checkpoint, threads: int, quantized: bool) -> Engine:
    spec = checkpoint.config.input
    model = (
        quantized_graph(checkpoint)
        if quantized
        else build_graph(fold(checkpoint.network), spec.height, spec.width, "mask")
    )
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino_core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = compiled({"images": images})["logits"]
        return logits

    return Dense("openvino", len(checkpoint.network.blocks), classify)


@cache
def openvino_core() -> Any:
    """Return the only `openvino.Core` of the process.

    A Core replaces the signal stack of its thread. If two Cores are deleted in the order of their creation, the thread
    keeps a signal stack that is no longer mapped. Then the next signal with a handler ends the process.
    """
    import openvino

    return openvino.Core()


def quantized_graph(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the dense network in int8 by ONNX Runtime's static quantisation."""
    from onnxruntime import quantization

    spec = checkpoint.config.input
    noise = np.random.default_rng(0).standard_normal((4, 3, spec.height, spec.width), np.float32)

    class Noise(quantization.CalibrationDataReader):  # type: ignore[misc]
        batches = iter([{"images": image[None]} for image in noise])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, written = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        onnx.save(build_graph(fold(checkpoint.network), spec.height, spec.width, "mask"), plain)
        quantization.quantize_static(plain, written, Noise(), per_channel=True)
        return onnx.load(written)
