"""Limits over a real socket: size, number, and memory of concurrent requests."""

import gc
import http.client
import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from service.inference.image_task import ImageTask
from service.repository.loaded_model import LoadedModel
from tests.service.parts import PNG, Running, encoded, engine_of, error_of, picture, post, until


def test_too_many_pixels(start: Callable[..., Running]) -> None:
    server = start(max_image_pixels=1000)
    response = post(server, encoded(picture(0, 32, 32)))
    assert (response.status_code, error_of(response)) == (413, "image_too_large")


def test_a_too_large_content_length_is_refused_before_the_body(start: Callable[..., Running]) -> None:
    server = start(max_body_size=1000)
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.putrequest("POST", "/classify")
        for name, value in (PNG | {"content-length": "1000000000"}).items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "body_too_large"


def test_too_many_bytes_without_content_length(start: Callable[..., Running]) -> None:
    server = start(max_body_size=100_000)
    response = server.client.post("/classify", content=(b"x" * 10_000 for _ in range(12)), headers=PNG)
    assert (response.status_code, error_of(response)) == (413, "body_too_large")
    assert server.container.admission.byte_count == 0
    just = encoded(picture(0)).ljust(100_000, b"\0")
    assert server.client.post("/classify", content=(c for c in [just]), headers=PNG).status_code == 200


def test_bodies_held_at_once_are_bounded(start: Callable[..., Running], model: LoadedModel) -> None:
    data = encoded(picture(0))
    server = start(max_bodies_size=2 * len(data))
    engine_of(model).open.clear()
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(post, server, data) for _ in range(2)]
        until(lambda: server.container.admission.byte_count == 2 * len(data))
        response = post(server, data)
        assert (response.status_code, error_of(response)) == (429, "overloaded")
        engine_of(model).open.set()
        assert [each.result().status_code for each in first] == [200, 200]
    assert server.metric("rejections_total", reason="bodies_full") == 1


def test_an_expired_image_is_released_before_a_decoding_thread_is_free(start: Callable[..., Running]) -> None:
    server = start(decode_threads=1)
    held = threading.Event()
    server.container.pipeline.decode_threads.submit(held.wait)
    try:
        response = post(server, encoded(picture(0, 300, 300)), headers=PNG | {"x-request-timeout": "0.1"})
        assert (response.status_code, error_of(response)) == (504, "deadline_exceeded")
        assert server.container.pipeline.decode_threads._work_queue.qsize() == 1
        tasks = [each for each in gc.get_objects() if type(each) is ImageTask]
        assert tasks and not any(each.payload for each in tasks)
    finally:
        held.set()
    assert post(server, encoded(picture(0, 300, 300))).status_code == 200


def test_a_full_queue_returns_429_at_once_and_serves_probes(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start(max_queue_size=3)
    post(server, encoded(picture(0)))
    engine_of(model).open.clear()
    with ThreadPoolExecutor(3) as pool:
        admitted = [pool.submit(post, server, encoded(picture(i))) for i in range(3)]
        until(lambda: server.container.admission.image_count == 3)
        refused = post(server, encoded(picture(0)))
        assert (refused.status_code, error_of(refused)) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        # Refused before its body was read.
        unread = post(server, b"", headers={"content-type": "text/plain"})
        assert (unread.status_code, error_of(unread)) == (429, "overloaded")
        for path in ("/health/live", "/health/ready", "/metrics", "/models", "/"):
            assert server.client.get(path).status_code == 200
        engine_of(model).open.set()
        assert [each.result().status_code for each in admitted] == [200] * 3
    assert post(server, encoded(picture(0))).status_code == 200
    assert server.metric("rejections_total", reason="queue_full") == 2
    assert server.metric("requests_total", outcome="rejected") == 2


def test_request_without_its_body_takes_no_place(start: Callable[..., Running]) -> None:
    server = start(max_queue_size=1)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 999\r\n\r\nabc"
        )
        until(lambda: server.container.admission.byte_count == 3)
        assert server.metric("images_in_flight") == 0
        assert post(server, encoded(picture(0))).status_code == 200
