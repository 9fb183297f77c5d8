import re
import socket
import time
from collections.abc import Callable

import pytest

from service.http.parser import MAX_HEAD, MAX_HEADERS, MAX_PIPELINED, Parser
from service.http.protocol import BoundedProtocol
from service.repository.loaded_model import LoadedModel
from tests.service.parts import Running, encoded, engine_of, picture, until


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 10)


def everything(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(4096), b""))


@pytest.mark.parametrize(
    "endless", [b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\n"]
)
def test_head_that_never_ends_is_cut_off(running: Running, endless: bytes) -> None:
    filler = b"a: b\r\n" * 200 if endless.endswith(b"\r\n") else b"y" * 1200
    with connect(running) as client:
        client.sendall(endless)
        sent = 0
        try:
            while sent < 100 * MAX_HEAD:
                sent += client.send(filler)
        except ConnectionError:
            pass
        assert sent < 100 * MAX_HEAD


def test_a_head_of_too_many_lines_is_refused(running: Running) -> None:
    with connect(running) as client:
        client.sendall(b"GET /health/live HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n")
        assert everything(client).startswith(b"HTTP/1.1 431 ")
    with connect(running) as client:
        client.sendall(b"GET /health/live HTTP/1.1\r\n" + b"a: b\r\n" * MAX_HEADERS + b"\r\n")
        assert b" 200 " in responses(client, 1)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Long: " + b"y" * 40_000 + b"\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + (b"X-Long: " + b"y" * 1_000 + b"\r\n") * 40 + b"\r\n",
    ],
    ids=["path", "line", "lines"],
)
def test_a_large_head_that_arrives_complete_is_refused(running: Running, head: bytes) -> None:
    with connect(running) as client:
        client.sendall(head)
        assert everything(client).startswith(b"HTTP/1.1 431 ")


def test_pipelined_requests_are_limited(running: Running) -> None:
    waiting: list[int] = []
    begin = Parser.on_message_begin

    def note(self: Parser) -> None:
        waiting.append(len(self.protocol.pipeline))
        begin(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "on_message_begin", note)
        with connect(running) as client:
            assert is_cut_off(client, b"GET /nowhere HTTP/1.1\r\n\r\n" * 1000)
    assert max(waiting) == MAX_PIPELINED


def test_head_within_the_bound_is_accepted(running: Running) -> None:
    assert running.client.get("/health/live", headers={"x-long": "y" * 30_000}).status_code == 200


def test_bound_is_for_each_request_of_a_connection(running: Running) -> None:
    for _ in range(4):
        assert running.client.get("/health/live", headers={"x-long": "y" * 30_000}).status_code == 200


@pytest.mark.parametrize("started", [b"", b"GET / HTTP/1.1\r\nHost:"])
def test_a_silent_client_is_disconnected(running: Running, monkeypatch: pytest.MonkeyPatch, started: bytes) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_seconds", 0.05)
    with connect(running) as client:
        client.sendall(started)
        assert everything(client) == b""


def test_body_may_take_longer_than_the_head(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_seconds", 0.05)
    with connect(running) as client:
        client.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nX-Request-Timeout: 0.3\r\n"
            b"Connection: close\r\nContent-Length: 9\r\n\r\n"
        )
        assert everything(client).startswith(b"HTTP/1.1 408 ")


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = (b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Type: image/png", *headers)
    return b"\r\n".join((*lines, b"Content-Length: %d" % len(body), b"", body))


def responses(client: socket.socket, count: int) -> bytes:
    """Return the bytes received until ``count`` responses have begun."""
    got = b""
    while got.count(b"HTTP/1.1 ") < count:
        some = client.recv(65536)
        assert some, got
        got += some
    return got


def is_cut_off(client: socket.socket, data: bytes) -> bool:
    """Return whether the server closes a connection on which ``data`` is sent repeatedly."""
    end = time.monotonic() + 20
    try:
        while time.monotonic() < end:
            client.sendall(data)
    except ConnectionError:
        return True
    except TimeoutError:
        pass  # The connection is open, but no longer read.
    return False


def test_the_body_after_a_response_is_limited(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "rest_seconds", 0.2)
    with connect(running) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        assert is_cut_off(client, b"y")


def test_a_body_that_ends_after_the_response_leaves_the_connection_open(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "rest_seconds", 0.05)
    with connect(running) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        assert b" 404 " in responses(client, 1)
        client.sendall(b"cd")
        with pytest.raises(TimeoutError):
            client.settimeout(0.2)
            client.recv(1)
        client.settimeout(10)
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in responses(client, 1)


def test_trailers_are_dropped(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    complete = BoundedProtocol.on_message_complete

    def note(self: BoundedProtocol) -> None:
        kept.append(len(self.headers))
        complete(self)

    monkeypatch.setattr(BoundedProtocol, "on_message_complete", note)
    with connect(running) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        client.sendall(b"a: b\r\n" * 1000 + b"\r\n")
        assert b" 404 " in responses(client, 1)
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in responses(client, 1)
    assert kept == [2, 1]


@pytest.mark.parametrize("trailers", [b"a: b\r\n" * 4000, b"a" * 24_000], ids=["many", "one"])
def test_trailers_that_never_end_are_cut_off(running: Running, trailers: bytes) -> None:
    with connect(running) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        assert is_cut_off(client, trailers)


def test_line_ends_do_not_keep_a_connection_open(start: Callable[..., Running]) -> None:
    with connect(start(keep_alive=1)) as client:
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in responses(client, 1)
        client.sendall(b"\r\n")
        assert everything(client) == b""


def test_unread_responses_time_out(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "unread_seconds", 0.1)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # The least possible.
        client.settimeout(20)
        client.connect(("127.0.0.1", running.port))
        state, me = running.server.server_state, client.getsockname()

        def connected() -> bool:
            return me in [getattr(connection, "client", None) for connection in state.connections]

        until(connected)
        large = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
        client.sendall(large * MAX_PIPELINED)
        until(lambda: not connected())


def test_a_request_of_a_disconnected_client_is_cancelled(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start()
    engine_of(model).open.clear()
    with connect(server) as client:
        client.sendall(post(b"/classify", encoded(picture(0))))
        until(lambda: server.container.admission.image_count == 1)
        engine_of(model).entered.get(timeout=20)
    until(lambda: server.container.admission.image_count == 0)
    engine_of(model).open.set()
    with connect(server) as client:
        client.sendall(post(b"/classify", encoded(picture(1))))
        assert b" 200 " in responses(client, 1)
    assert server.metric("requests_total", outcome="cancelled") == 1
    assert server.metric("requests_total", outcome="error") == 0
    assert len(engine_of(model).batches) == 2


@pytest.mark.parametrize("pieces", [1, 40])
def test_an_upgrade_request_is_served_without_an_upgrade(running: Running, pieces: int) -> None:
    image = encoded(picture(0))
    upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
    sent = post(b"/classify", image, *upgrade) + post(b"/classify", image, *upgrade) + post(b"/classify", image)
    size = -(-len(sent) // pieces)
    with connect(running) as client:
        for start in range(0, len(sent), size):
            client.sendall(sent[start : start + size])
        got = responses(client, 3)
    assert got.count(b" 200 OK") == 3
    assert len(set(re.findall(rb'"probability":[0-9.]+', got))) <= 10


def test_a_tunnel_is_refused(running: Running) -> None:
    with connect(running) as client:
        client.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n")
        assert everything(client).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("before", ["body", "heads"])
def test_earlier_requests_do_not_count_towards_the_size_of_a_head(running: Running, before: str) -> None:
    if before == "body":
        sent, count = post(b"/nowhere", b"y" * 200_000), 1
    else:
        count = 7
        sent = b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Long: %b\r\n\r\n" % (b"y" * 30_000) * count
    with connect(running) as client:
        client.sendall(sent + b"GET /health/live HTTP/1.1\r\nHost: x")
        assert b" 431 " not in responses(client, count)
        client.sendall(b"\r\n\r\n")
        assert b" 200 " in responses(client, 1)
