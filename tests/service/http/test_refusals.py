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


class Wire:
    """A connection that reads one answer after the other."""

    def __init__(self, server: Running) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), 20)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> str:
        lines: list[bytes] = []
        while (line := self.file.readline()) != b"\r\n":
            assert line, "the connection ended before an answer did"
            lines.append(line)
        return b"".join(lines).decode()

    def answer(self) -> tuple[int, dict[str, str], dict[str, object]]:
        head = self.head()
        headers = {name.lower(): value for name, value in re.findall(r"^(\S+): (.*)\r$", head, re.M)}
        return int(head.split()[1]), headers, json.loads(self.file.read(int(headers["content-length"])))

    def ended(self) -> bool:
        return self.file.read(1) == b""

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def full(start: Callable[..., Running], model: LoadedModel) -> Iterator[Callable[..., tuple[Running, Wire]]]:
    """Start a server that one image fills, and return it with the connection that sent the image."""
    wires: list[Wire] = []

    def begin(**settings: object) -> tuple[Running, Wire]:
        server = start(max_queue_size=1, **settings)
        engine_of(model).open.clear()
        wires.append(Wire(server))
        wires[0].send(ask())
        until(lambda: server.container.admission.image_count == 1)
        return server, wires[0]

    yield begin
    for wire in wires:
        wire.close()


@pytest.fixture
def wire() -> Iterator[Callable[[Running], Wire]]:
    opened: list[Wire] = []

    def connect(server: Running) -> Wire:
        opened.append(Wire(server))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def test_refusal_has_what_every_answer_has(
    full: Callable[..., tuple[Running, Wire]], wire: Callable[[Running], Wire]
) -> None:
    server, _ = full()
    client = wire(server)
    client.send(ask(X_Request_ID="mine"))
    status, headers, body = client.answer()
    assert (status, body["error"]["code"]) == (429, "overloaded")  # type: ignore[index]
    assert (headers["x-request-id"], headers["content-type"]) == ("mine", "application/json")
    assert int(headers["retry-after"]) >= 1
    assert "date" in headers
    client.send(ask(f"/v2/models/{NAME}/infer", X_Request_ID="not\tplain"))
    status, headers, body = client.answer()
    assert (status, type(body["error"])) == (429, str)
    assert re.fullmatch("[0-9a-f]{16}", headers["x-request-id"])


def test_connection_goes_on_after_a_refusal(
    full: Callable[..., tuple[Running, Wire]], wire: Callable[[Running], Wire], model: LoadedModel
) -> None:
    server, first = full()
    client = wire(server)
    # The body comes after its request was refused, and is read past.
    head, body = ask()[: -len(BODY)], BODY
    client.send(head)
    assert client.answer()[0] == 429
    client.send(body + b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.answer()[0] == 200
    engine_of(model).open.set()
    assert first.answer()[0] == 200
    client.send(ask())
    assert client.answer()[0] == 200


@pytest.mark.parametrize("asked", ["close", None])
def test_connection_ends_where_the_client_wants_it(
    full: Callable[..., tuple[Running, Wire]], wire: Callable[[Running], Wire], asked: str | None
) -> None:
    server, _ = full()
    client = wire(server)
    client.send(ask(Connection=asked) if asked else ask().replace(b"HTTP/1.1", b"HTTP/1.0"))
    status, headers, _ = client.answer()
    assert (status, headers["connection"]) == (429, "close")
    assert client.ended()


def test_page_of_another_origin_may_read_its_refusal(
    full: Callable[..., tuple[Running, Wire]], wire: Callable[[Running], Wire]
) -> None:
    server, _ = full(cors_origins=["https://a.example"])
    client = wire(server)
    client.send(ask(Origin="https://a.example")[: -len(BODY)])  # It is refused before its body is read.
    status, headers, _ = client.answer()
    assert (status, headers["access-control-allow-origin"]) == (429, "https://a.example")


def test_a_full_queue_refuses_inference_only(
    full: Callable[..., tuple[Running, Wire]], wire: Callable[[Running], Wire]
) -> None:
    server, _ = full()
    client = wire(server)
    client.send(ask("/v2/repository/index", b"{}"))
    assert client.answer()[0] == 200
    client.send(ask("/classify/more"))
    assert client.answer()[0] == 404
