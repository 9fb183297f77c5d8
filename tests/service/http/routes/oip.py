"""Requests and errors of the Open Inference Protocol, for its tests."""

from typing import Any

import httpx


def message(response: httpx.Response) -> str:
    body = response.json()
    assert body.keys() == {"error"}
    assert isinstance(body["error"], str)
    return str(body["error"])


def request(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.5] * 3072}
    return {"inputs": [tensor | changes.pop("tensor", {})]} | changes
