"""The Open Inference Protocol over gRPC on a real socket, with Triton's client."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from models.preprocessing import prepare
from service.errors import Code, ServiceError
from service.grpc.messages import FOLDER, SERVICE, check_outline, message_class
from service.grpc.server import STATUS_CODES
from service.repository.loaded_model import LoadedModel
from service.settings import Settings
from tests.service.parts import LABELS, NAME, SPEC, Process, Running, encoded, engine_of, picture, until


def port_of(server: Running) -> int:
    assert server.server.grpc is not None
    until(lambda: server.server.grpc is not None and server.server.grpc.port != 0)
    return server.server.grpc.port


@pytest.fixture(scope="module")
def server(repository: Path, loaded: LoadedModel) -> Iterator[Running]:
    settings = Settings(model_repository=repository, max_batch_size=8, dense_sample_interval=0, grpc_port=0)
    running = Running(settings, lambda _: replace(loaded)).wait_ready()
    yield running
    running.stop()


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{port_of(server)}") as opened:
        yield opened


@pytest.fixture
def connect() -> Iterator[Callable[[Running], Any]]:
    opened: list[Any] = []

    def begin(server: Running) -> Any:
        opened.append(triton.InferenceServerClient(f"127.0.0.1:{port_of(server)}"))
        return opened[-1]

    yield begin
    for each in opened:
        each.close()


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


def test_health_and_metadata(client: Any, server: Running) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, "1")
    assert not client.is_model_ready("unknown")
    assert not client.is_model_ready(NAME, "9")
    assert client.get_server_metadata(as_json=True)["name"] == "skipnet-serve"
    overhttp = server.client.get(f"/v2/models/{NAME}").json()
    metadata = client.get_model_metadata(NAME)
    assert [metadata.name, list(metadata.versions), metadata.platform] == [NAME, ["1"], overhttp["platform"]]
    for kind in ("inputs", "outputs"):
        found = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(metadata, kind)]
        assert found == overhttp[kind]
    config = client.get_model_config(NAME).config
    assert (config.max_batch_size, list(config.input[0].dims), config.input[0].format) == (8, [3, 32, 32], 2)
    assert [output.data_type for output in config.output] == [11, 11, 1, 9]
    assert "airplane" in config.parameters["labels"].string_value


def test_infer_returns_the_output_of_the_engine(client: Any, server: Running, loaded: LoadedModel) -> None:
    answered = server.metric("requests_total", outcome="ok", model=NAME, version="1")
    values = images()
    answer = client.infer(NAME, [tensor(values)], request_id="seven")
    routed = loaded.engine.run(values, np.full(3, loaded.checkpoint.config.execute_threshold, np.float32))
    np.testing.assert_allclose(answer.as_numpy("logits"), routed.logits, atol=1e-4)
    assert np.array_equal(answer.as_numpy("executed"), routed.executed)
    assert np.array_equal(answer.as_numpy("macs"), loaded.checkpoint.macs.executed(routed.executed))
    response = answer.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seven", NAME, "1")
    until(lambda: server.metric("requests_total", outcome="ok", model=NAME, version="1") == answered + 1)


def test_files_classification_and_parameters(client: Any) -> None:
    wanted = triton.InferRequestedOutput("probabilities", class_count=2)
    rows = client.infer(NAME, [files(0, 1)], outputs=[wanted]).as_numpy("probabilities")
    plain = client.infer(NAME, [tensor(images(2))]).as_numpy("probabilities")
    for row, probabilities in zip(rows, plain, strict=True):
        best = [int(text.decode().split(":")[1]) for text in row]
        assert best == np.argsort(-probabilities)[:2].tolist()
        assert row[0].decode().endswith(LABELS[best[0]])
    for threshold, executed in ((0.0, 17), (1.0, 0)):
        answer = client.infer(NAME, [files(0)], parameters={"execute_threshold": threshold})
        assert answer.as_numpy("executed").sum(1).tolist() == [executed]


def call(server: Running, method: str, message: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Call a method with a message that no client would make."""
    with grpc.insecure_channel(f"127.0.0.1:{port_of(server)}") as channel:
        answer: bytes = channel.unary_unary(f"/{SERVICE}/{method}")(message, timeout=20, metadata=metadata)
        return answer


def infer_request(**changes: Any) -> Any:
    described = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32]} | changes.pop("tensor", {})
    return message_class("ModelInferRequest")(model_name=NAME, inputs=[described], **changes)


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


RAW = images(1).tobytes()
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


def test_messages_that_would_take_much_memory_are_refused_unread() -> None:
    many = message_class("ModelInferRequest")(outputs=[{}] * 65)
    large = message_class("ModelInferRequest")(id="x" * (5 << 20))
    for request in (many, large):
        with pytest.raises(ServiceError, match="more than"):
            check_outline(request.SerializeToString())
    tensors = message_class("ModelInferRequest")(raw_input_contents=[bytes(5 << 20)])
    assert check_outline(tensors.SerializeToString()) < 10


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


def test_overload_is_refused(
    start: Callable[..., Running], model: LoadedModel, connect: Callable[[Running], Any]
) -> None:
    server = start(grpc_port=0, max_queue_size=1)
    client = connect(server)
    engine_of(model).open.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.infer, NAME, [files(0)])
        until(lambda: server.container.admission.image_count == 1)
        with pytest.raises(grpc.RpcError) as refused:
            call(server, "ModelInfer", infer_request(raw_input_contents=[RAW]).SerializeToString())
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(refused.value.trailing_metadata())
        assert int(trailers["grpc-retry-pushback-ms"]) == 1000 * int(trailers["retry-after"])
        assert trailers["x-request-id"]
        engine_of(model).open.set()
        assert first.result().as_numpy("logits").shape == (1, 10)
    assert server.metric("rejections_total", reason="queue_full") == 1


def test_deadlines_and_cancelled_requests_leave_the_queue(
    start: Callable[..., Running], model: LoadedModel, connect: Callable[[Running], Any]
) -> None:
    server = start(grpc_port=0)
    client = connect(server)
    engine_of(model).open.clear()
    with pytest.raises(InferenceServerException) as error:
        client.infer(NAME, [files(0)], client_timeout=0.2)
    assert status_of(error) == "DEADLINE_EXCEEDED"
    until(lambda: server.metric("requests_total", outcome="client_deadline", model=NAME) == 1)
    with pytest.raises(InferenceServerException) as error:
        client.infer(NAME, [files(0)], timeout=50_000)
    assert status_of(error) == "DEADLINE_EXCEEDED"
    until(lambda: server.metric("requests_total", outcome="client_deadline", model=NAME) == 2)
    ended = threading.Event()
    waiting = client.async_infer(NAME, [files(1)], lambda **_: ended.set())
    until(lambda: server.container.admission.image_count == 1)
    waiting.cancel()
    until(lambda: server.metric("requests_total", outcome="cancelled", model=NAME) == 1)
    assert ended.wait(20)
    assert server.container.admission.image_count == 0
    engine_of(model).open.set()
    client.infer(NAME, [files(2)])


def test_a_message_over_the_limit_is_refused(start: Callable[..., Running], connect: Callable[[Running], Any]) -> None:
    server = start(grpc_port=0, max_body_size=100_000)
    client = connect(server)
    with pytest.raises(InferenceServerException) as error:
        client.infer(NAME, [tensor(images(1).repeat(9, 0))])
    assert status_of(error) == "RESOURCE_EXHAUSTED"
    client.infer(NAME, [tensor(images(1).repeat(7, 0))])
    until(lambda: server.container.admission.byte_count == 0)


def test_a_message_that_never_comes_takes_one_place_until_the_deadline(
    start: Callable[..., Running], connect: Callable[[Running], Any]
) -> None:
    server = start(grpc_port=0, request_timeout=1, max_body_size=1 << 20, max_bodies_size=2 << 20)
    client, held = connect(server), threading.Event()

    def nothing() -> Iterator[bytes]:
        held.wait(20)
        yield b""

    with grpc.insecure_channel(f"127.0.0.1:{port_of(server)}") as channel:
        slow = channel.stream_unary(f"/{SERVICE}/ModelInfer").future(nothing())
        client.infer(NAME, [files(0)])
        assert slow.exception(20).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        held.set()


def test_requests_in_progress_end_at_a_shutdown_and_new_ones_are_refused(
    start: Callable[..., Running], model: LoadedModel, connect: Callable[[Running], Any]
) -> None:
    server = start(grpc_port=0)
    client = connect(server)
    engine_of(model).open.clear()
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(client.infer, NAME, [files(0)])
        until(lambda: server.container.admission.image_count == 1)
        server.server.should_exit = True
        until(lambda: server.container.health.closed)
        with pytest.raises(InferenceServerException) as error:
            client.infer(NAME, [files(1)])
        # UNAVAILABLE if the client has noticed that the connection closes, CANCELLED if its request was on the way.
        assert status_of(error) in ("UNAVAILABLE", "CANCELLED")
        engine_of(model).open.set()
        assert before.result().as_numpy("logits").shape == (1, 10)
    server.thread.join(20)
    assert not server.thread.is_alive()


def test_workers_share_the_port(launch: Callable[..., Process], repository: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = launch(
        *("--workers", "2", "--grpc-port", str(port), "--engine", "torch", "--threads", "1", "--max-batch-size", "1"),
        SKIPNET_MODEL_REPOSITORY=str(repository),
    )
    url = serve.url()
    until(lambda: httpx.get(f"{url}/health/ready", timeout=20).status_code == 200, 120)
    for _ in range(4):
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.infer(NAME, [files(0)]).as_numpy("logits").shape == (1, 10)
            with pytest.raises(InferenceServerException) as error:
                client.load_model(NAME)
            assert status_of(error) == "UNIMPLEMENTED"
    lines = httpx.get(f"{url}/metrics", timeout=20).text.splitlines()
    [counted] = [
        line for line in lines if line.startswith("skipnet_requests_total{") and 'outcome="ok"' in line and NAME in line
    ]
    assert counted.endswith(" 4.0")


def test_a_port_in_use_ends_with_a_reason(launch: Callable[..., Process], server: Running, repository: Path) -> None:
    serve = launch("--model-repository", str(repository), "--grpc-port", str(port_of(server)))
    assert serve.process.wait(60) == 1
    assert "gRPC can't listen at 127.0.0.1" in serve.lines


def test_the_compiled_description_is_that_of_the_source(tmp_path: Path) -> None:
    made = tmp_path / "made.binpb"
    compile_it = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}", f"--descriptor_set_out={made}"]
    subprocess.run([*compile_it, "open_inference.proto"], check=True)
    assert made.read_bytes() == (FOLDER / "open_inference.binpb").read_bytes()
