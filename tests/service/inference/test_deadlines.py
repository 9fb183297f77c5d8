"""Late requests and disconnected clients, over a real socket."""

import gc
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.repository.loaded_model import LoadedModel
from tests.service.parts import PNG, Running, encoded, engine_of, error_of, picture, post, until


def test_deadline_in_the_queue_is_504_and_never_computed(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start()
    engine_of(model).open.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, encoded(picture(0)))
        until(lambda: server.container.pipeline.batcher.busy_for > 0)
        late = post(server, encoded(picture(1)), headers=PNG | {"x-request-timeout": "0.2"})
        assert (late.status_code, error_of(late)) == (504, "deadline_exceeded")
        batches = len(engine_of(model).batches)
        engine_of(model).open.set()
        assert first.result().status_code == 200
    assert post(server, encoded(picture(2))).status_code == 200
    assert len(engine_of(model).batches) == batches + 1
    assert server.metric("dropped_total", reason="deadline") == 1
    until(lambda: server.metric("requests_total", outcome="client_deadline") == 1)


def test_a_request_cannot_extend_the_servers_timeout(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start(request_timeout=0.2)
    engine_of(model).open.clear()
    response = post(server, encoded(picture(0)), headers=PNG | {"x-request-timeout": "1000"})
    assert (response.status_code, error_of(response)) == (504, "deadline_exceeded")
    until(lambda: server.metric("requests_total", outcome="deadline") == 1)


def test_a_short_client_deadline_counts_as_the_clients(
    start: Callable[..., Running], model: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    server = start()
    engine_of(model).open.clear()
    with caplog.at_level("INFO", "skipnet.access"):
        assert post(server, encoded(picture(0)), headers=PNG | {"x-request-timeout": "0.2"}).status_code == 504
        until(lambda: server.metric("requests_total", outcome="client_deadline") == 1)
    assert server.metric("requests_total", outcome="deadline") == 0
    # The line names the error and the client.
    [line] = [record.fields for record in caplog.records if record.name == "skipnet.access"]  # type: ignore[attr-defined]
    assert (line["code"], line["client"]) == ("deadline_exceeded", "127.0.0.1")


def test_a_disconnected_client_is_dropped_and_counted(
    start: Callable[..., Running], model: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    server = start()
    data = encoded(picture(1))
    engine_of(model).open.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, encoded(picture(0)))
        until(lambda: server.container.pipeline.batcher.busy_for > 0)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            head = (
                f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            client.sendall(head.encode() + data)
            until(lambda: server.container.pipeline.batcher.depth(model) == 1)
        until(lambda: server.metric("requests_total", outcome="cancelled") == 1)
        batches = len(engine_of(model).batches)
        engine_of(model).open.set()
        assert first.result().status_code == 200
    until(lambda: server.metric("dropped_total", reason="client_gone") == 1)
    assert len(engine_of(model).batches) == batches
    assert server.container.admission.image_count == server.container.admission.byte_count == 0
    gc.collect()
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]


def test_a_client_that_disconnects_while_sending(start: Callable[..., Running]) -> None:
    server = start()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 999\r\n\r\nabc"
        )
        until(lambda: server.container.admission.byte_count == 3)
    until(lambda: server.metric("requests_total", outcome="cancelled") == 1)
    assert server.container.admission.image_count == server.container.admission.byte_count == 0


def test_a_body_that_never_ends_gets_408(start: Callable[..., Running]) -> None:
    server = start()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nX-Request-Timeout: 0.1\r\n"
            b"Content-Length: 999\r\n\r\nabc"
        )
        assert b"408 Request Timeout" in client.recv(1000)
    until(lambda: server.container.admission.byte_count == 0)
