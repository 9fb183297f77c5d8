"""Requests of Triton's client, and requests that no client would make."""

from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from models.preprocessing import prepare
from service.grpc.messages import SERVICE, message_class
from tests.service.parts import NAME, SPEC, Running, encoded, picture, until


def port_of(server: Running) -> int:
    assert server.server.grpc is not None
    until(lambda: server.server.grpc is not None and server.server.grpc.port != 0)
    return server.server.grpc.port


def images(count: int = 3) -> NDArray[np.float32]:
    return np.stack([prepare(picture(i), SPEC) for i in range(count)])


def tensor(values: NDArray[Any], name: str = "image", datatype: str = "FP32") -> Any:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def files(*seeds: int) -> Any:
    return tensor(np.asarray([encoded(picture(seed)) for seed in seeds], object), "bytes", "BYTES")


def status_of(error: pytest.ExceptionInfo[InferenceServerException]) -> str:
    return str(error.value.status()).removeprefix("StatusCode.")


def call(server: Running, method: str, message: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Call a method with a message that no client would make."""
    with grpc.insecure_channel(f"127.0.0.1:{port_of(server)}") as channel:
        response: bytes = channel.unary_unary(f"/{SERVICE}/{method}")(message, timeout=20, metadata=metadata)
        return response


def infer_request(**changes: Any) -> Any:
    described = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32]} | changes.pop("tensor", {})
    return message_class("ModelInferRequest")(model_name=NAME, inputs=[described], **changes)


RAW = images(1).tobytes()
