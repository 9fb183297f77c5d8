"""Error responses reach clients that are still sending a large body, directly and through a real nginx."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from service.http.protocol import BoundedProtocol
from service.repository.loaded_model import LoadedModel
from tests.service.http.connections.nginx import Nginx
from tests.service.parts import Running, encoded, engine_of, picture, until

KEY = {"x-api-key": "key"}
PNG = {"content-type": "image/png"} | KEY
SIZES = (3_000_000, 8_000_000, 20_000_000)

REFUSED = {
    401: ("POST", "/classify", {"content-type": "image/png"}),
    404: ("POST", "/nowhere", PNG),
    405: ("PUT", "/classify", PNG),
    413: ("POST", "/v2/repository/index", PNG),
    415: ("POST", "/classify", {"content-type": "text/plain"} | KEY),
    422: ("POST", "/classify?top_k=x", PNG),
}

LOCATIONS = """
    location / { proxy_pass http://service; }
    location /kept/ { proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://service/; }
"""


@pytest.fixture
def server(start: Callable[..., Running]) -> Running:
    return start(api_keys=["key"], max_queue_size=1)


@pytest.fixture
def nginx(server: Running, tmp_path: Path) -> Iterator[Nginx]:
    started = Nginx(tmp_path, server.port, LOCATIONS)
    yield started
    started.end()


def send_all_then_read(server: Running, method: str, path: str, headers: dict[str, str], size: int) -> bytes:
    """Send a request as Python's urllib does: it reads the response only after it has sent the body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {size}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + b"x" * size)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize("prefix", ["", "/kept"], ids=["default", "keepalive"])
def test_refusals_arrive_through_nginx(nginx: Nginx, prefix: str) -> None:
    expected = [(status, *request, size) for status, request in REFUSED.items() for size in SIZES]
    expected += [(413, "POST", "/classify", PNG, SIZES[-1])]
    got = [
        httpx.request(
            method, f"{nginx.url}{prefix}{path}", headers=headers, content=bytes(size), timeout=60
        ).status_code
        for _, method, path, headers, size in expected
    ]
    assert got == [status for status, *_ in expected]


@pytest.mark.parametrize("prefix", ["", "/kept"], ids=["default", "keepalive"])
def test_429s_arrive_through_nginx(server: Running, nginx: Nginx, model: LoadedModel, prefix: str) -> None:
    engine_of(model).open.clear()
    body = encoded(picture(0))
    with closing(socket.create_connection(("127.0.0.1", server.port), 20)) as client:
        client.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nX-API-Key: key\r\nContent-Type: image/png\r\n")
        client.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        until(lambda: server.container.admission.image_count == 1)
        url = f"{nginx.url}{prefix}/classify"
        got = [httpx.post(url, headers=PNG, content=bytes(size), timeout=60).status_code for size in SIZES[:2] * 3]
    assert got == [429] * 6


@pytest.mark.parametrize("status", REFUSED)
def test_refusals_reach_a_client_that_sends_everything_first(server: Running, status: int) -> None:
    for size in SIZES:
        response = send_all_then_read(server, *REFUSED[status], size)
        assert response.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nconnection: close\r\n" in response.lower()


def stops_reading(client: socket.socket) -> bool:
    """Return whether the server resets a connection whose body continues after the response."""
    chunk = bytes(1 << 20)
    try:
        for _ in range(100):
            client.sendall(chunk)
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_body_is_read_up_to_a_limit_after_its_response(
    running: Running, monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    monkeypatch.setattr(BoundedProtocol, "max_rest", 8 << 20)
    with socket.create_connection(("127.0.0.1", running.port), 20) as client:
        head = f"POST /nowhere HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\nContent-Length: {10**9}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 404 ")
        assert stops_reading(client)


def test_a_client_that_never_closes_is_disconnected(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "rest_seconds", 0.2)
    with socket.create_connection(("127.0.0.1", running.port), 20) as client:
        me = client.getsockname()
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n")
        while client.recv(65536):
            pass
        connections = running.server.server_state.connections
        until(lambda: me not in [getattr(each, "client", None) for each in connections])
