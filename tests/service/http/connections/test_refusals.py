"""429s on real sockets. One image fills the queue, because the engine is held."""

import json
import re
import socket
from collections.abc import Callable, Iterator

import pytest

from service.repository.loaded_model import LoadedModel
from tests.service.parts import NAME, Running, encoded, engine_of, picture, until

BODY = encoded(picture(0))


def ask(path: str = "/classify", body: bytes = BODY, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection:
    """A connection that reads responses one by one."""

    def __init__(self, server: Running) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), 20)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> str:
        lines: list[bytes] = []
        while (line := self.file.readline()) != b"\r\n":
            assert line, "the connection ended before a response did"
            lines.append(line)
        return b"".join(lines).decode()

    def response(self) -> tuple[int, dict[str, str], dict[str, object]]:
        head = self.head()
        headers = {name.lower(): value for name, value in re.findall(r"^(\S+): (.*)\r$", head, re.M)}
        return int(head.split()[1]), headers, json.loads(self.file.read(int(headers["content-length"])))

    def ended(self) -> bool:
        return self.file.read(1) == b""

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def saturated(start: Callable[..., Running], model: LoadedModel) -> Iterator[Callable[..., tuple[Running, Connection]]]:
    """Start a server that one image fills, and return it with the connection that sent the image."""
    connections: list[Connection] = []

    def begin(**settings: object) -> tuple[Running, Connection]:
        server = start(max_queue_size=1, **settings)
        engine_of(model).open.clear()
        connections.append(Connection(server))
        connections[0].send(ask())
        until(lambda: server.container.admission.image_count == 1)
        return server, connections[0]

    yield begin
    for each in connections:
        each.close()


@pytest.fixture
def connect_to() -> Iterator[Callable[[Running], Connection]]:
    opened: list[Connection] = []

    def connect(server: Running) -> Connection:
        opened.append(Connection(server))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def test_a_refusal_has_the_headers_of_every_response(
    saturated: Callable[..., tuple[Running, Connection]], connect_to: Callable[[Running], Connection]
) -> None:
    server, _ = saturated()
    client = connect_to(server)
    client.send(ask(X_Request_ID="mine"))
    status, headers, body = client.response()
    assert (status, body["error"]["code"]) == (429, "overloaded")  # type: ignore[index]
    assert (headers["x-request-id"], headers["content-type"]) == ("mine", "application/json")
    assert int(headers["retry-after"]) >= 1
    assert "date" in headers
    client.send(ask(f"/v2/models/{NAME}/infer", X_Request_ID="not\tplain"))
    status, headers, body = client.response()
    assert (status, type(body["error"])) == (429, str)
    assert re.fullmatch("[0-9a-f]{16}", headers["x-request-id"])


def test_a_connection_stays_open_after_a_refusal(
    saturated: Callable[..., tuple[Running, Connection]],
    connect_to: Callable[[Running], Connection],
    model: LoadedModel,
) -> None:
    server, first = saturated()
    client = connect_to(server)
    # The body comes after its request was refused, and is read past.
    head, body = ask()[: -len(BODY)], BODY
    client.send(head)
    assert client.response()[0] == 429
    client.send(body + b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.response()[0] == 200
    engine_of(model).open.set()
    assert first.response()[0] == 200
    client.send(ask())
    assert client.response()[0] == 200


@pytest.mark.parametrize("asked", ["close", None])
def test_a_connection_closes_if_the_client_asks_for_it(
    saturated: Callable[..., tuple[Running, Connection]], connect_to: Callable[[Running], Connection], asked: str | None
) -> None:
    server, _ = saturated()
    client = connect_to(server)
    client.send(ask(Connection=asked) if asked else ask().replace(b"HTTP/1.1", b"HTTP/1.0"))
    status, headers, _ = client.response()
    assert (status, headers["connection"]) == (429, "close")
    assert client.ended()


def test_page_of_another_origin_may_read_its_refusal(
    saturated: Callable[..., tuple[Running, Connection]], connect_to: Callable[[Running], Connection]
) -> None:
    server, _ = saturated(cors_origins=["https://a.example"])
    client = connect_to(server)
    client.send(ask(Origin="https://a.example")[: -len(BODY)])  # It is refused before its body is read.
    status, headers, _ = client.response()
    assert (status, headers["access-control-allow-origin"]) == (429, "https://a.example")


def test_a_full_queue_refuses_inference_only(
    saturated: Callable[..., tuple[Running, Connection]], connect_to: Callable[[Running], Connection]
) -> None:
    server, _ = saturated()
    client = connect_to(server)
    client.send(ask("/v2/repository/index", b"{}"))
    assert client.response()[0] == 200
    client.send(ask("/classify/more"))
    assert client.response()[0] == 404
