"""Requests and errors of the Open Inference Protocol, for its tests."""

from typing import Any

import httpx

from tests.service.parts import NAME


def message(response: httpx.Response) -> str:
    body = response.json()
    assert body.keys() == {"error"}
    assert isinstance(body["error"], str)
    return str(body["error"])


def request(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.5] * 3072}
    return {"inputs": [tensor | changes.pop("tensor", {})]} | changes


def assert_health(client: Any) -> None:
    """Check the probes of a server, of its model NAME and of models that it does not have, by a client of Triton."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, "1")
    assert not client.is_model_ready("unknown")
    assert not client.is_model_ready(NAME, "9")
