"""The accounting of the load generator, with a real h2load against a server in a thread."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from service.benchmark.generator import Request, send
from tests.programs import program

Serve = Callable[[list[int]], tuple[int, list[bytes]]]
REQUEST = Request(("/a", "/b"), b"x", "text/plain", ("X-Mine: 1",))


class Answering(asyncio.Protocol):
    """Responds to the requests with ``statuses`` in turn.

    After the last it closes the connection without a response.
    """

    def __init__(self, statuses: list[int], heads: list[bytes]) -> None:
        self.statuses, self.heads = iter(statuses), heads

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heads.append(data)
        status = next(self.statuses, None)
        if status is None:
            self.transport.abort()
            return
        self.transport.write(b"HTTP/1.1 %d x\r\nContent-Length: 2\r\n\r\nhi" % status)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that respond with some statuses on each connection. Return the port and the received heads."""
    program("h2load", "nghttp2-client")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers: list[asyncio.Server] = []

    def begin(statuses: list[int]) -> tuple[int, list[bytes]]:
        heads: list[bytes] = []
        starting = loop.create_server(lambda: Answering(statuses, heads), "127.0.0.1", 0)
        servers.append(asyncio.run_coroutine_threadsafe(starting, loop).result(20))
        return servers[-1].sockets[0].getsockname()[1], heads

    yield begin
    for each in servers:
        loop.call_soon_threadsafe(each.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


def test_every_request_has_a_status(serve: Serve) -> None:
    port, heads = serve([200, 429])
    result = send(REQUEST, port, 2, requests=4)
    assert send(REQUEST, port, 3, requests=2).counts == {"200": 2}
    assert result.counts == {"200": 2, "429": 2}
    assert result.lost == 0
    assert (result.took > 0).all()
    assert result.cpu > 0
    assert result.goodput == pytest.approx(2 / result.seconds)
    paths = {head.split()[1] for head in heads}
    assert paths == {b"/a", b"/b"}
    assert all(b"x-mine: 1" in head.lower() and head.startswith(b"POST") for head in heads)


def test_a_request_without_a_response_is_lost(serve: Serve) -> None:
    port, _ = serve([200])
    result = send(REQUEST, port, 2, requests=8)
    assert (result.counts, result.lost) == ({"200": 2}, 2)
    # At the end of the seconds, requests are in flight.
    port, _ = serve([200] * 100_000)
    assert send(REQUEST, port, 1, seconds=0.1).lost is None


def test_a_rate_is_that_of_all_connections(serve: Serve) -> None:
    port, _ = serve([200] * 100)
    result = send(REQUEST, port, 10, requests=60, rate=200)
    assert len(result.statuses) == 60
    # Ten requests are sent at once at the beginning, the others at the rate.
    assert result.began.max() - result.began.min() > 0.9 * 50 / 200


def test_new_connections_are_opened(serve: Serve) -> None:
    port, heads = serve([200] * 4)
    send(REQUEST, port, 1, requests=2, new_connections=True)
    assert all(b"connection: close" in head.lower() for head in heads)


def test_a_port_where_nothing_listens_is_named() -> None:
    program("h2load", "nghttp2-client")
    with pytest.raises(RuntimeError, match="no response from port 9"):
        send(REQUEST, 9, 1, requests=1)
