"""Classify an image for a peer: decode it as our service does, then run the dense network in ONNX Runtime."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.preprocessing import InputSpec, prepare
from service.inference.decoder import Decoder

FOLDER = Path(os.environ["SKIPNET_DENSE"])
SPEC = InputSpec.model_validate_json((FOLDER / "input.json").read_text())
THREADS = os.cpu_count() or 1
MAX_BATCH = 32

_decoder = Decoder(32_000_000, 512 << 20)


def decode(data: bytes) -> NDArray[np.float32]:
    with _decoder.decode(data, SPEC.resize) as image:
        return prepare(image, SPEC)


def load() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(FOLDER / "dense.onnx", options, providers=["CPUExecutionProvider"])


def run(session: Any, images: NDArray[np.float32]) -> list[dict[str, float]]:
    [logits] = session.run(["logits"], {"images": images})
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = powers / powers.sum(-1, keepdims=True)
    return [{"index": int(row.argmax()), "probability": float(row.max())} for row in probabilities]
