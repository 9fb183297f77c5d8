"""Requests of the Open Inference Protocol that are refused or at a limit."""

import asyncio
import json
from time import perf_counter
from typing import Any

import pytest

from service.errors import ServiceError
from service.http.oip import Parameters, read_call
from tests.service.http.routes.oip import message, request
from tests.service.parts import NAME, Running

BAD = {
    "no inputs": {"inputs": []},
    "no object": [1, 2],
    "two inputs": {"inputs": request()["inputs"] * 2},
    "unknown input": request(tensor={"name": "picture"}),
    "unknown output": request(outputs=[{"name": "labels"}]),
    "wrong datatype": request(tensor={"datatype": "FP16"}),
    "wrong shape": request(tensor={"shape": [1, 3, 31, 32]}),
    "no images": request(tensor={"shape": [0, 3, 32, 32], "data": []}),
    "negative": request(tensor={"shape": [-1, 3, 32, 32]}),
    "too few numbers": request(tensor={"data": [0.5] * 3071}),
    "strings": request(tensor={"data": ["a"] * 3072}),
    "ragged": request(tensor={"data": [[0.5] * 3071, 0.5]}),
    "null": request(tensor={"data": [None] * 3072}),
    "not finite": request(tensor={"data": [1e39] * 3072}),
    "overflowing": request(tensor={"data": [3e38] * 3072}),
    "no data": request(tensor={"data": None}),
    "promised bytes": request(tensor={"data": None, "parameters": {"binary_data_size": 12288}}),
    "not base64": request(tensor={"name": "bytes", "datatype": "BYTES", "shape": [1], "data": ["?"]}),
    "numbers as bytes": request(tensor={"name": "bytes", "datatype": "BYTES", "shape": [1], "data": [7]}),
    "too few files": request(tensor={"name": "bytes", "datatype": "BYTES", "shape": [2], "data": ["aaaa"]}),
    "surrogate": request(tensor={"datatype": "\ud800"}),
    "surrogate for bytes": request(tensor={"name": "bytes", "datatype": "\ud800"}),
    "output twice": request(outputs=[{"name": "logits"}, {"name": "macs"}, {"name": "logits"}]),
    "endless": request(parameters={"timeout": 10**400}),
    "classified macs": request(outputs=[{"name": "macs", "parameters": {"classification": 2}}]),
    "threshold": request(parameters={"execute_threshold": 2}),
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_bad_requests(running: Running, body: Any) -> None:
    response = running.client.post(f"/v2/models/{NAME}/infer", content=json.dumps(body))
    assert response.status_code == 400
    assert message(response)


def test_optional_members_may_be_null(running: Running) -> None:
    tensor = {"parameters": None, "data": [0.5] * 3072}
    outputs = [
        {"name": "macs", "parameters": None},
        {"name": "logits", "parameters": {"binary_data": None, "classification": None}},
    ]
    parameters = dict.fromkeys(Parameters.model_fields)
    for body in (
        request(tensor=tensor, id=None, outputs=None, parameters=None),
        request(tensor=tensor, id=None, outputs=outputs, parameters=parameters),
        request(tensor=tensor | {"parameters": {"binary_data_size": None}}),
    ):
        response = running.client.post(f"/v2/models/{NAME}/infer", content=json.dumps(body))
        assert (response.status_code, "id" in response.json()) == (200, False)
    index = running.client.post("/v2/repository/index", content=json.dumps({"ready": None}))
    assert index.status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"NaN", b'{"inputs": NaN}'])
def test_malformed_json_is_refused(running: Running, body: bytes) -> None:
    response = running.client.post(f"/v2/models/{NAME}/infer", content=body)
    assert response.status_code == 400
    assert message(response)


@pytest.mark.parametrize(
    ("body", "header", "status"),
    [
        (b"{}", "99", 400),
        (b"{}", "-1", 422),
        (b"{}", "x", 422),
        (b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], '
         b'"parameters": {"binary_data_size": 4}}]}1234', "106", 400),
        (b'{"inputs": [{"name": "bytes", "datatype": "BYTES", "shape": [1], '
         b'"parameters": {"binary_data_size": 4}}]}\xff\xff\xff\xff', "99", 400),
        (b'{"inputs": [{"name": "bytes", "datatype": "BYTES", "shape": [2], '
         b'"parameters": {"binary_data_size": 4}}]}\0\0\0\0', "99", 400),
    ],
)  # fmt: skip
def test_bad_binary_data(running: Running, body: bytes, header: str, status: int) -> None:
    if body.startswith(b'{"inputs"'):
        header = str(body.rindex(b"}") + 1)
    response = running.client.post(
        f"/v2/models/{NAME}/infer", content=body, headers={"inference-header-content-length": header}
    )
    assert response.status_code == status
    assert message(response)


def test_large_json_must_be_sent_as_binary_data(running: Running) -> None:
    response = running.client.post(f"/v2/models/{NAME}/infer", content=b'{"x": "' + b"y" * (5 << 20) + b'"}')
    assert response.status_code == 413
    assert "binary" in message(response)


def test_large_json_is_parsed_one_at_a_time_before_the_deadline(running: Running) -> None:
    # Not a tensor, but over SMALL_JSON.
    large, url = b'{"x": "' + b"y" * (1 << 17) + b'"}', f"/v2/models/{NAME}/infer"

    async def hold(size: int, seconds: float) -> None:
        async with running.container.json_turn.take(size, perf_counter() + seconds):
            response = await asyncio.to_thread(
                running.client.post, url, content=large, headers={"x-request-timeout": "0.1"}
            )
            assert response.status_code == 504
            assert "JSON" in message(response)
            small = await asyncio.to_thread(running.client.post, url, content=b"{}")
            assert small.status_code == 400

    loop = running.container.pipeline.batcher._loop
    asyncio.run_coroutine_threadsafe(hold(len(large), 20), loop).result(30)
    assert running.client.post(url, content=large).status_code == 400


def test_millions_of_empty_files_are_not_counted_to_the_end() -> None:
    behind = bytes(16 << 20)
    tensor = {"name": "bytes", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(behind)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    start = perf_counter()
    with pytest.raises(ServiceError, match="longer than the 2 elements"):
        read_call(head + behind, len(head), (3, 32, 32), 256)
    assert perf_counter() - start < 0.5
