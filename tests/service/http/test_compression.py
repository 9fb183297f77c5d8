"""Request bodies with a Content-Encoding, over a real socket."""

import gzip
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tritonclient.http as triton

from models.preprocessing import prepare
from tests.service.parts import NAME, PNG, SPEC, Running, encoded, error_of, picture, post

IMAGE = encoded(picture(0))
GZIP = PNG | {"content-encoding": "gzip"}


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("Deflate", zlib.compress)]
)
@pytest.mark.parametrize("size", [0, 5_000_000])
def test_compressed_images(running: Running, encoding: str, compress: Callable[[bytes], bytes], size: int) -> None:
    body = compress(IMAGE.ljust(size, b"\0"))
    response = post(running, body, headers=PNG | {"content-encoding": encoding})
    assert response.json()["predictions"] == post(running, IMAGE).json()["predictions"]


def test_compressed_body_without_length(running: Running) -> None:
    body = gzip.compress(IMAGE)
    pieces: Iterator[bytes] = (body[i : i + 100] for i in range(0, len(body), 100))
    assert running.client.post("/classify", content=pieces, headers=GZIP).status_code == 200


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritons_client_compresses(running: Running, algorithm: str) -> None:
    values = np.stack([prepare(picture(i), SPEC) for i in range(3)])
    tensor = triton.InferInput("image", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    with triton.InferenceServerClient(f"127.0.0.1:{running.port}") as client:
        plain = client.infer(NAME, [tensor]).as_numpy("logits")
        compressed = client.infer(NAME, [tensor], request_compression_algorithm=algorithm).as_numpy("logits")
    assert np.allclose(plain, compressed, atol=1e-4)


@pytest.mark.parametrize("path", ["/classify", f"/v2/models/{NAME}/infer", "/v2/repository/index"])
def test_bombs_are_refused(running: Running, path: str) -> None:
    bomb = gzip.compress(bytes(200 << 20))
    assert len(bomb) < 250_000
    response = running.client.post(path, content=bomb, headers=GZIP)
    assert response.status_code == 413
    assert running.container.admission.byte_count == 0


def test_decompressed_bytes_count_as_held(start: Callable[..., Running]) -> None:
    server = start(max_bodies_size=1 << 20)
    response = post(server, gzip.compress(IMAGE.ljust(2 << 20, b"\0")), headers=GZIP)
    assert (response.status_code, error_of(response)) == (429, "overloaded")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "identity"])
def test_other_encodings_are_refused_by_name(running: Running, encoding: str) -> None:
    response = post(running, IMAGE, headers=PNG | {"content-encoding": encoding})
    assert (response.status_code, error_of(response)) == (415, "unsupported_media_type")
    assert f"Content-Encoding {encoding}:" in response.json()["error"]["message"]
    assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("body", [b"", IMAGE, gzip.compress(IMAGE)[:-9], gzip.compress(IMAGE) + b"x"])
def test_damaged_compression(running: Running, body: bytes) -> None:
    response = post(running, body, headers=GZIP)
    assert (response.status_code, error_of(response)) == (400, "bad_request")
    assert "gzip" in response.json()["error"]["message"]
