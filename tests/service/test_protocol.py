import asyncio
import socket
from typing import cast

import pytest

from service.protocol import MAX_HEAD, BoundedProtocol, OneWrite
from tests.service.parts import Running


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


def test_head_within_the_bound_is_answered(running: Running) -> None:
    assert running.client.get("/health/live", headers={"x-long": "y" * 30_000}).status_code == 200


def test_bound_is_for_each_request_of_a_connection(running: Running) -> None:
    for _ in range(4):
        assert running.client.get("/health/live", headers={"x-long": "y" * 30_000}).status_code == 200


@pytest.mark.parametrize("started", [b"", b"GET / HTTP/1.1\r\nHost:"])
def test_client_that_says_nothing_is_not_waited_for(
    running: Running, monkeypatch: pytest.MonkeyPatch, started: bytes
) -> None:
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


class Wire:
    """A transport that notes what it is told to do."""

    def __init__(self) -> None:
        self.told: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("close")


def test_head_and_body_of_an_answer_are_written_at_once() -> None:
    async def answer() -> list[bytes | str]:
        wire = Wire()
        transport = OneWrite(cast(asyncio.Transport, wire), asyncio.get_running_loop())
        transport.write(b"head")
        transport.write(b"body")
        await asyncio.sleep(0)
        transport.write(b"next")
        transport.close()
        await asyncio.sleep(0)
        return wire.told

    assert asyncio.run(answer()) == [b"headbody", b"next", "close"]
