"""The Open Inference Protocol over a real socket, with Triton's client."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from models.preprocessing import prepare
from service.http.oip import respond
from service.repository.loaded_model import LoadedModel
from tests.service.http.routes.oip import assert_health, message, request
from tests.service.parts import LABELS, NAME, PNG, SPEC, Running, encoded, engine_of, picture, until

Pixels = NDArray[np.float32]


@pytest.fixture
def client(running: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{running.port}") as opened:
        yield opened


def images(count: int = 3) -> Pixels:
    return np.stack([prepare(picture(i), SPEC) for i in range(count)])


def image_input(values: Pixels, binary: bool) -> Any:
    tensor = triton.InferInput("image", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def test_health_and_metadata(client: Any) -> None:
    assert_health(client)
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata(NAME)
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "FP32", "shape": [-1, 3, 32, 32]},
        {"name": "bytes", "datatype": "BYTES", "shape": [-1]},
    ]
    assert metadata["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        {"name": "executed", "datatype": "BOOL", "shape": [-1, 17]},
        {"name": "macs", "datatype": "INT64", "shape": [-1]},
    ]
    config = client.get_model_config(NAME, "1")
    assert config["max_batch_size"] == 8
    assert config["input"][0]["format"] == "FORMAT_NCHW"
    assert config["input"][0]["dims"] == [3, 32, 32]


@pytest.mark.parametrize("slash", ["", "/"])
def test_server_metadata_with_and_without_slash(running: Running, slash: str) -> None:
    assert running.client.get(f"/v2{slash}").json()["name"] == "skipnet-serve"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer_returns_the_output_of_the_engine(
    client: Any, loaded: LoadedModel, binary_in: bool, binary_out: bool
) -> None:
    values = images()
    names = ("logits", "probabilities", "executed", "macs")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    inferred = client.infer(NAME, [image_input(values, binary_in)], outputs=outputs, request_id="seven")
    threshold = np.full(3, loaded.checkpoint.config.execute_threshold, np.float32)
    routed = loaded.engine.run(values, threshold)
    np.testing.assert_allclose(inferred.as_numpy("logits"), routed.logits, atol=1e-4)
    np.testing.assert_allclose(inferred.as_numpy("probabilities").sum(1), 1, atol=1e-5)
    assert np.array_equal(inferred.as_numpy("executed"), routed.executed)
    assert inferred.as_numpy("executed").dtype == bool
    assert np.array_equal(inferred.as_numpy("macs"), loaded.checkpoint.macs.executed(routed.executed))
    response = inferred.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("seven", NAME, "1")


def test_all_outputs_are_the_default(client: Any) -> None:
    inferred = client.infer(NAME, [image_input(images(1), True)])
    assert [each["name"] for each in inferred.get_response()["outputs"]] == [
        *("logits", "probabilities", "executed", "macs")
    ]


@pytest.mark.parametrize("binary", [True, False])
def test_encoded_images(client: Any, binary: bool) -> None:
    files = [encoded(picture(i), kind) for i, kind in enumerate(["PNG", "BMP", "WEBP"])]
    wire = files if binary else [base64.b64encode(file) for file in files]
    tensor = triton.InferInput("bytes", [3], "BYTES")
    tensor.set_data_from_numpy(np.asarray(wire, object), binary_data=binary)
    inferred = client.infer(NAME, [tensor], outputs=[triton.InferRequestedOutput("logits")])
    expected = client.infer(NAME, [image_input(images(2), True)], outputs=[triton.InferRequestedOutput("logits")])
    np.testing.assert_allclose(inferred.as_numpy("logits")[:2], expected.as_numpy("logits"), atol=1e-4)


@pytest.mark.parametrize("data", [["x"], [["x"]]])
def test_encoded_images_in_the_shape_of_tritons_configuration(running: Running, data: list[Any]) -> None:
    file = base64.b64encode(encoded(picture(0))).decode()
    tensor = {"name": "bytes", "datatype": "BYTES", "shape": [1, 1]}
    sent = json.loads(json.dumps(data).replace("x", file))
    response = running.client.post(f"/v2/models/{NAME}/infer", json={"inputs": [tensor | {"data": sent}]})
    assert response.status_code == 200


def test_if_one_image_fails_the_others_are_not_computed(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start()
    engine_of(model).open.clear()
    tensor = triton.InferInput("bytes", [2], "BYTES")
    tensor.set_data_from_numpy(np.asarray([encoded(picture(1)), b"\xff\xd8\xffjunk"], object))
    with ThreadPoolExecutor(1) as pool, triton.InferenceServerClient(f"127.0.0.1:{server.port}") as other:
        before = pool.submit(server.client.post, "/classify", content=encoded(picture(0)), headers=PNG)
        until(lambda: server.container.pipeline.batcher.busy_for > 0)
        with pytest.raises(InferenceServerException, match="damaged"):
            other.infer(NAME, [tensor])
        engine_of(model).open.set()
        assert before.result().status_code == 200
    until(lambda: server.metric("dropped_total", reason="request_failed") == 1)
    assert server.metric("dropped_total") == 1


@pytest.mark.parametrize("binary", [True, False])
def test_classification_extension(client: Any, binary: bool) -> None:
    wanted = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=3)
    inferred = client.infer(NAME, [image_input(images(2), True)], outputs=[wanted]).as_numpy("probabilities")
    plain = client.infer(NAME, [image_input(images(2), True)]).as_numpy("probabilities")
    assert inferred.shape == (2, 3)
    for row, probabilities in zip(inferred, plain, strict=True):
        for text, index in zip(row, np.argsort(-probabilities)[:3], strict=True):
            value, place, label = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(place), label) == (index, LABELS[index])
            assert float(value) == pytest.approx(probabilities[index], abs=1e-5)


def test_flow_of_tritons_image_client(client: Any) -> None:
    """It needs one input and one output, a vector, and reads their names and shapes from the metadata."""
    model = f"{NAME}@image"
    metadata, config = client.get_model_metadata(model), client.get_model_config(model)
    [taken], [given], [layout] = metadata["inputs"], metadata["outputs"], config["input"]
    assert (given["datatype"], len(given["shape"]), len(taken["shape"])) == ("FP32", 2, 4)
    assert config["max_batch_size"] > 0
    assert layout["format"] == "FORMAT_NCHW"
    _, channels, height, width = taken["shape"]
    assert channels == 3
    photo = np.asarray(picture(0).resize((width, height)), np.float32).transpose(2, 0, 1) / 127.5 - 1
    tensor = triton.InferInput(taken["name"], [2, channels, height, width], taken["datatype"])
    tensor.set_data_from_numpy(np.stack([photo, photo]))
    output = triton.InferRequestedOutput(given["name"], class_count=1)
    inferred = client.infer(model, [tensor], request_id="1", model_version="", outputs=[output])
    rows = inferred.as_numpy(given["name"])
    assert len(rows) == 2
    assert len({row[0] for row in rows}) == 1


def test_thresholds(client: Any) -> None:
    for threshold, executed in ((0.0, 17), (1.0, 0)):
        inferred = client.infer(NAME, [image_input(images(2), True)], parameters={"execute_threshold": threshold})
        assert inferred.as_numpy("executed").sum(1).tolist() == [executed] * 2


def test_more_images_than_a_batch(client: Any, running: Running, loaded: LoadedModel) -> None:
    values = np.concatenate([images(7)] * 3)
    inferred = client.infer(NAME, [image_input(values, True)])
    thresholds = np.full(21, loaded.checkpoint.config.execute_threshold, np.float32)
    np.testing.assert_allclose(inferred.as_numpy("logits"), loaded.engine.run(values, thresholds).logits, atol=1e-4)
    assert running.container.admission.image_count == 0


def test_a_bad_image_among_valid_ones(client: Any) -> None:
    tensor = triton.InferInput("bytes", [2], "BYTES")
    tensor.set_data_from_numpy(np.asarray([encoded(picture(0)), b"no image"], object))
    with pytest.raises(InferenceServerException, match="not an image"):
        client.infer(NAME, [tensor])


def test_unknown_models_and_versions(client: Any, running: Running) -> None:
    for model, version in (("unknown", ""), (NAME, "9"), (NAME, "one"), (NAME, "9" * 30)):
        with pytest.raises(InferenceServerException):
            client.infer(model, [image_input(images(1), True)], model_version=version)
    assert running.client.get("/v2/models/unknown").status_code == 404
    assert message(running.client.get("/v2/models/unknown/config"))
    assert message(running.client.get("/v2/nowhere"))


def test_timeout_parameter(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start()
    engine_of(model).open.clear()
    response = server.client.post(f"/v2/models/{NAME}/infer", json=request(parameters={"timeout": 50_000}))
    assert response.status_code == 504
    assert message(response)
    until(lambda: server.metric("requests_total", outcome="client_deadline", model=NAME) == 1)


def test_images_of_a_request_are_admitted_together(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start(max_queue_size=3)

    def infer(count: int) -> int:
        tensor = {"shape": [count, 3, 32, 32], "data": [0.5] * (count * 3072)}
        return server.client.post(f"/v2/models/{NAME}/infer", json=request(tensor=tensor)).status_code

    assert infer(4) == 422
    assert server.metric("rejections_total") == 0
    assert infer(3) == 200
    engine_of(model).open.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(infer, 1)
        until(lambda: server.container.admission.image_count == 1)
        assert infer(3) == 429
        second = pool.submit(infer, 2)
        until(lambda: server.container.admission.image_count == 3)
        engine_of(model).open.set()
        assert [first.result(), second.result()] == [200, 200]
    assert server.container.admission.image_count == 0


@pytest.mark.parametrize(("count", "apart"), [(3, False), (101, True)])
def test_large_responses_are_written_in_a_thread(
    running: Running, monkeypatch: pytest.MonkeyPatch, count: int, apart: bool
) -> None:
    threads: list[threading.Thread] = []

    def watching(*arguments: Any) -> tuple[bytes, int | None]:
        threads.append(threading.current_thread())
        return respond(*arguments)

    monkeypatch.setattr("service.http.routes.v2.respond", watching)
    body = np.zeros((count, 3, 32, 32), np.float32).tobytes()
    tensor = {"name": "image", "datatype": "FP32", "shape": [count, 3, 32, 32]}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(body)}}]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    assert running.client.post(f"/v2/models/{NAME}/infer", content=head + body, headers=headers).status_code == 200
    assert [thread is not running.thread for thread in threads] == [apart]
