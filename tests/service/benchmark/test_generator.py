"""The accounting of the load generator: every request has an outcome."""

import asyncio
import socket

from service.benchmark.generator import LOST, REFUSED, closed_loop, open_loop, post

REQUEST = post("/", b"x", "text/plain")


class LimitedServer(asyncio.Protocol):
    """A server that sends ``reply`` to the first ``answers`` requests, ``late`` seconds late, and then closes."""

    def __init__(self, answers: int, reply: bytes, late: float) -> None:
        self.left, self.reply, self.late = answers, reply, late

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        if self.left:
            asyncio.get_running_loop().call_later(self.late, self.transport.write, self.reply)
        else:
            self.transport.close()
        self.left -= 1


async def serve(answers: int, reply: bytes, late: float = 0) -> tuple[asyncio.Server, int]:
    server = await asyncio.get_running_loop().create_server(lambda: LimitedServer(answers, reply, late), "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def test_every_request_has_an_outcome() -> None:
    async def run() -> None:
        server, port = await serve(3, b"HTTP/1.1 429 x\r\nContent-Length: 2\r\n\r\nhi")
        async with server:
            result = await closed_loop(port, [REQUEST], 1, 60, most=8)
        # Each connection answers three and drops the fourth.
        assert result.statuses == {429: 6, LOST: 2}
        assert all(outcome.done >= outcome.sent >= outcome.due for outcome in result.outcomes)

    asyncio.run(run())


def test_arrivals_do_not_wait_for_responses() -> None:
    async def run() -> None:
        # No answer comes before all requests have.
        server, port = await serve(1000, b"HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n", late=0.6)
        async with server:
            result = await open_loop(port, [REQUEST], 400, 0.5)
        assert result.statuses == {200: len(result.outcomes)}
        assert 100 < len(result.outcomes) < 300

    asyncio.run(run())


def test_refused_connections_are_counted_separately() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result = asyncio.run(open_loop(port, [REQUEST], 200, 0.2))
    assert result.statuses.keys() == {REFUSED}
