"""429s on real sockets. One image fills the queue, because the engine is held."""

import re
from collections.abc import Callable, Iterator

import pytest

from service.repository.loaded_model import LoadedModel
from tests.service.http.connections.client import BODY, Connection, ask
from tests.service.parts import NAME, Running, engine_of, until


@pytest.fixture
def saturated(start: Callable[..., Running], model: LoadedModel) -> Iterator[Callable[..., tuple[Running, Connection]]]:
    """Start a server that one image fills, and return it with the connection that sent the image."""
    connections: list[Connection] = []

    def begin(**settings: object) -> tuple[Running, Connection]:
        server = start(max_queue_size=1, **settings)
        engine_of(model).open.clear()
        connections.append(Connection(server.port))
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
        opened.append(Connection(server.port))
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
    # The body arrives after its request was refused, and is discarded.
    head, body = ask()[: -len(BODY)], BODY
    client.send(head)
    assert client.response()[0] == 429
    client.send(body + b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.response()[0] == 200
    engine_of(model).open.set()
    assert first.response()[0] == 200
    client.send(ask())
    assert client.response()[0] == 200


@pytest.mark.parametrize("header", ["close", None])
def test_a_connection_closes_if_the_client_requests_it(
    saturated: Callable[..., tuple[Running, Connection]],
    connect_to: Callable[[Running], Connection],
    header: str | None,
) -> None:
    server, _ = saturated()
    client = connect_to(server)
    client.send(ask(Connection=header) if header else ask().replace(b"HTTP/1.1", b"HTTP/1.0"))
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
