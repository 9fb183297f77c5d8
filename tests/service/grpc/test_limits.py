"""Queue, deadlines, message size, shutdown and workers over gRPC, with Triton's client."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from service.errors import ServiceError
from service.grpc.messages import SERVICE, check_outline, message_class
from service.repository.loaded_model import LoadedModel
from tests.ports import free_port
from tests.service.grpc.requests import RAW, call, files, images, infer_request, port_of, status_of, tensor
from tests.service.parts import NAME, Process, Running, engine_of, until


def test_messages_that_would_take_much_memory_are_refused_unread() -> None:
    many = message_class("ModelInferRequest")(outputs=[{}] * 65)
    large = message_class("ModelInferRequest")(id="x" * (5 << 20))
    for request in (many, large):
        with pytest.raises(ServiceError, match="more than"):
            check_outline(request.SerializeToString())
    tensors = message_class("ModelInferRequest")(raw_input_contents=[bytes(5 << 20)])
    assert check_outline(tensors.SerializeToString()) < 10


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


def test_a_message_that_never_arrives_takes_one_place_until_the_deadline(
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
        # UNAVAILABLE if the client has noticed that the connection closes, CANCELLED if its request was in transit.
        assert status_of(error) in ("UNAVAILABLE", "CANCELLED")
        engine_of(model).open.set()
        assert before.result().as_numpy("logits").shape == (1, 10)
    server.thread.join(20)
    assert not server.thread.is_alive()


def test_workers_share_the_port(launch: Callable[..., Process], repository: Path) -> None:
    port = free_port()
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
    assert "gRPC cannot listen at 127.0.0.1" in serve.lines
