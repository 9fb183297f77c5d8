"""The methods of the Open Inference Protocol over gRPC, with Triton's client."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from service.errors import Code
from service.grpc.messages import FOLDER, message_class
from service.grpc.server import STATUS_CODES
from service.repository.loaded_model import LoadedModel
from tests.service.grpc.requests import RAW, call, files, images, infer_request, status_of, tensor
from tests.service.http.routes.oip import assert_health
from tests.service.parts import LABELS, NAME, Running, encoded, picture, until


def test_health_and_metadata(client: Any, server: Running) -> None:
    assert_health(client)
    assert client.get_server_metadata(as_json=True)["name"] == "skipnet-serve"
    over_http = server.client.get(f"/v2/models/{NAME}").json()
    metadata = client.get_model_metadata(NAME)
    assert [metadata.name, list(metadata.versions), metadata.platform] == [NAME, ["1"], over_http["platform"]]
    for kind in ("inputs", "outputs"):
        found = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(metadata, kind)]
        assert found == over_http[kind]
    config = client.get_model_config(NAME).config
    assert (config.max_batch_size, list(config.input[0].dims), config.input[0].format) == (8, [3, 32, 32], 2)
    assert [output.data_type for output in config.output] == [11, 11, 1, 9]
    assert "airplane" in config.parameters["labels"].string_value


def test_infer_returns_the_output_of_the_engine(client: Any, server: Running, loaded: LoadedModel) -> None:
    counted = server.metric("requests_total", outcome="ok", model=NAME, version="1")
    values = images()
    result = client.infer(NAME, [tensor(values)], request_id="seven")
    routed = loaded.engine.run(values, np.full(3, loaded.checkpoint.config.execute_threshold, np.float32))
    np.testing.assert_allclose(result.as_numpy("logits"), routed.logits, atol=1e-4)
    assert np.array_equal(result.as_numpy("executed"), routed.executed)
    assert np.array_equal(result.as_numpy("macs"), loaded.checkpoint.macs.executed(routed.executed))
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seven", NAME, "1")
    until(lambda: server.metric("requests_total", outcome="ok", model=NAME, version="1") == counted + 1)


def test_files_classification_and_parameters(client: Any) -> None:
    wanted = triton.InferRequestedOutput("probabilities", class_count=2)
    rows = client.infer(NAME, [files(0, 1)], outputs=[wanted]).as_numpy("probabilities")
    plain = client.infer(NAME, [tensor(images(2))]).as_numpy("probabilities")
    for row, probabilities in zip(rows, plain, strict=True):
        best = [int(text.decode().split(":")[1]) for text in row]
        assert best == np.argsort(-probabilities)[:2].tolist()
        assert row[0].decode().endswith(LABELS[best[0]])
    for threshold, executed in ((0.0, 17), (1.0, 0)):
        result = client.infer(NAME, [files(0)], parameters={"execute_threshold": threshold})
        assert result.as_numpy("executed").sum(1).tolist() == [executed]


def test_tensors_as_numbers_and_elements(server: Running, client: Any) -> None:
    expected = client.infer(NAME, [tensor(images(1))]).as_numpy("logits")
    numbers = {"contents": {"fp32_contents": images(1).ravel().tolist()}}
    file = {"name": "bytes", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [encoded(picture(0))]}}
    for content in (numbers, file):
        request = infer_request(tensor=content, outputs=[{"name": "logits"}])
        response = message_class("ModelInferResponse").FromString(
            call(server, "ModelInfer", request.SerializeToString())
        )
        logits = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(1, 10)
        np.testing.assert_allclose(logits, expected, atol=1e-4)


BAD = {
    "no input": message_class("ModelInferRequest")(model_name=NAME),
    "no tensor": infer_request(),
    "two tensors": infer_request(raw_input_contents=[RAW, RAW]),
    "short": infer_request(raw_input_contents=[RAW[:-4]]),
    "wrong shape": infer_request(tensor={"shape": [1] * 9}, raw_input_contents=[RAW]),
    "unknown input": infer_request(tensor={"name": "picture"}, raw_input_contents=[RAW]),
    "unknown output": infer_request(outputs=[{"name": "labels"}], raw_input_contents=[RAW]),
    "threshold": infer_request(parameters={"execute_threshold": {"double_param": 2}}, raw_input_contents=[RAW]),
    "no image": infer_request(
        tensor={"name": "bytes", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"x"]}}
    ),
}


@pytest.mark.parametrize(
    "message", [*(each.SerializeToString() for each in BAD.values()), b"\xff", b"\x0a\x7f"], ids=[*BAD, "junk", "cut"]
)
def test_bad_requests(server: Running, message: bytes) -> None:
    with pytest.raises(grpc.RpcError) as error:
        call(server, "ModelInfer", message)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details()


def test_unknown_models_versions_and_methods(client: Any) -> None:
    for model, version in (("unknown", ""), (NAME, "9"), (NAME, "one")):
        with pytest.raises(InferenceServerException) as error:
            client.infer(model, [files(0)], model_version=version)
        assert status_of(error) == "NOT_FOUND"
    with pytest.raises(InferenceServerException) as error:
        client.get_inference_statistics()
    assert status_of(error) == "UNIMPLEMENTED"


def test_every_error_has_a_status() -> None:
    assert STATUS_CODES.keys() == set(Code)


def test_keys(start: Callable[..., Running], connect: Callable[[Running], Any]) -> None:
    client = connect(start(grpc_port=0, api_keys=["key"], management_keys=["boss"]))
    for headers, status in ((None, "UNAUTHENTICATED"), ({"authorization": "Bearer boss"}, "PERMISSION_DENIED")):
        with pytest.raises(InferenceServerException) as error:
            client.infer(NAME, [files(0)], headers=headers)
        assert status_of(error) == status
    client.infer(NAME, [files(0)], headers={"authorization": "Bearer key"})
    client.infer(NAME, [files(0)], headers={"x-api-key": "key"})
    with pytest.raises(InferenceServerException) as error:
        client.unload_model(NAME, headers={"x-api-key": "key"})
    assert status_of(error) == "PERMISSION_DENIED"
    assert client.is_model_ready(NAME)


def test_models_are_listed_and_changed(start: Callable[..., Running], connect: Callable[[Running], Any]) -> None:
    client = connect(start(grpc_port=0))
    client.unload_model(NAME)
    [entry] = client.get_model_repository_index().models
    assert (entry.name, entry.version, entry.state, entry.reason) == (NAME, "1", "UNAVAILABLE", "not loaded")
    assert not client.is_server_ready()
    client.load_model(NAME)
    assert client.is_model_ready(NAME)
    for name, wrong in (("unknown", {}), (NAME, {"config": "{}"})):
        with pytest.raises(InferenceServerException) as error:
            client.load_model(name, **wrong)
        assert status_of(error) == "INVALID_ARGUMENT"


def test_the_compiled_description_is_that_of_the_source(tmp_path: Path) -> None:
    made = tmp_path / "made.binpb"
    compile_it = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}", f"--descriptor_set_out={made}"]
    subprocess.run([*compile_it, "open_inference.proto"], check=True)
    assert made.read_bytes() == (FOLDER / "open_inference.binpb").read_bytes()
