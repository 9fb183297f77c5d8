"""Random requests get no 5xx, crash no server, and leave no images or bytes behind."""

import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.parts import NAME, Running, encoded, picture, until

FUZZ = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

numbers = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([10**400, -(10**400)])
# It includes halves of surrogate pairs, which JSON can encode and UTF-8 cannot.
texts = st.text(st.characters(), max_size=20) | st.just("\ud800")
scalars = st.none() | st.booleans() | numbers | texts
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_left_behind(running: Running) -> Any:
    yield
    assert running.client.get("/health/ready").status_code == 200
    until(lambda: running.container.admission.image_count == running.container.admission.byte_count == 0)
    until(lambda: all(each.leases == 0 for each in running.container.repository.loaded[NAME].values()))
    assert running.container.pipeline.decoder.memory.free == running.container.pipeline.decoder.memory.size
    assert running.metric("requests_total", outcome="error") == 0


@FUZZ
@given(
    parameters=st.dictionaries(
        st.sampled_from(["model", "version", "top_k", "execute_threshold", "compute_budget", "explain", "other"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | numbers.map(str),
        max_size=4,
    ),
    kind=st.sampled_from(
        [
            "image/png",
            "multipart/form-data; boundary=x",
            "multipart/form-data; boundary=x; charset=idna",
            "text/plain",
            "",
            "image/",
            "multipart/form-data",
        ]
    ),
    body=st.binary(max_size=200) | st.just(encoded(picture(0))),
)
def test_classify(running: Running, parameters: dict[str, str], kind: str, body: bytes) -> None:
    response = running.client.post("/classify", params=parameters, content=body, headers={"content-type": kind})
    assert response.status_code in (200, 400, 404, 413, 415, 422)
    assert response.status_code == 200 or response.json()["error"]["message"]


@FUZZ
@given(
    content=st.binary(max_size=300),
    header=st.text("abcdefghijklmnopqrstuvwxyz-=;:\"' \t", max_size=40),
    ending=st.sampled_from(["--x--\r\n", "--x\r\n", "", "\r\n--x--"]),
)
def test_forms(running: Running, content: bytes, header: str, ending: str) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="image"; {header}\r\n{header}: {header}\r\n\r\n'
    response = running.client.post(
        "/classify",
        content=head.encode() + content + ending.encode(),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert response.status_code in (400, 413, 415)


def mostly(valid: Any) -> Any:
    return st.just(valid) | trees


tensors = st.fixed_dictionaries(
    {
        "name": mostly("image") | st.just("bytes"),
        "datatype": mostly("FP32") | st.just("BYTES") | texts,
        "shape": mostly([1, 3, 32, 32]) | st.lists(st.integers(-2, 2**40), max_size=5),
        "data": mostly([0.5] * 3072) | st.lists(texts, max_size=3),
    },
    optional={"parameters": trees | st.fixed_dictionaries({"binary_data_size": st.integers(-5, 2**40)})},
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=2) | trees},
    optional={
        "id": mostly("1"),
        "outputs": trees | st.lists(st.fixed_dictionaries({"name": mostly("logits"), "parameters": trees}), max_size=2),
        "parameters": trees | st.fixed_dictionaries({"execute_threshold": numbers, "timeout": numbers}),
    },
)


@FUZZ
@given(request=requests | trees, behind=st.binary(max_size=40), header=st.none() | st.integers(-3, 5000).map(str))
def test_infer(running: Running, request: Any, behind: bytes, header: str | None) -> None:
    headers = {"inference-header-content-length": header} if header is not None else {}
    response = running.client.post(
        f"/v2/models/{NAME}/infer", content=json.dumps(request).encode() + behind, headers=headers
    )
    # A timeout of a few microseconds is valid.
    assert response.status_code in (200, 400, 413, 415, 422, 504)
    assert response.status_code == 200 or response.json().keys() == {"error"}


@FUZZ
@given(path=st.text(st.characters(exclude_categories=["Cs"]), max_size=30), body=st.binary(max_size=60))
def test_management(running: Running, path: str, body: bytes) -> None:

    for verb in ("load", "unload", "promote", "rollback"):
        if path != NAME:
            response = running.client.post(f"/v2/repository/models/{quote(path, safe='')}/{verb}", content=body)
            assert response.status_code in (307, 400, 404, 405)
    assert running.client.post("/v2/repository/index", content=body).status_code in (200, 400)


@FUZZ
@given(
    sent=st.binary(max_size=400),
    head=st.sampled_from([b"", b"POST /classify HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\n"]),
)
def test_bytes_that_are_not_http(running: Running, sent: bytes, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", running.port), 10) as client:
        client.sendall(head + sent)
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass


def test_memory_does_not_grow(running: Running) -> None:
    """Failures and successes alternate, after a first round that fills caches."""
    bodies = [encoded(picture(0)), encoded(picture(0))[:-20], b"no image", encoded(picture(1, 600, 600), "JPEG")]

    def round_of(count: int) -> int:
        for i in range(count):
            running.client.post(
                "/classify", content=bodies[i % 4], headers={"content-type": "image/png", "x-request-id": f"r{i}"}
            )
        return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

    first = round_of(100)
    assert round_of(200) - first < 20 << 10
