"""uvicorn's HTTP protocol with limits on slow clients and large requests, and a lingering close.

uvicorn limits the time between two requests of a connection and nothing else. A service without a proxy in front also
needs limits on the head of a request and on the time that a client takes to send and to read. They are set in asyncio's
callbacks (`connection_made`, `data_received`, `pause_writing` and so on), which are a public interface.

Private to uvicorn, for which it is pinned to a minor version:

- the attribute `parser`, replaced by `service.http.parser.Parser`, and the methods of HttpToolsProtocol that httptools
  calls. Only they tell at which byte a head or a body ends.
- the attributes `cycle` and `pipeline`, read to know whether a response is pending, and `send_400_response`,
  overridden to respond with 431.

uvicorn's other protocol, for h11, has a limit on heads and would need neither. But h11 is written in Python. For a
request it takes a fifth more of the event loop's time (a 32x32 PNG to POST /classify, medians of interleaved runs: 1.23
ms against 1.02). One read of 256 KiB in chunks of one byte takes 0.62 s (httptools 0.013 s), and blocks all other
requests.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.parser import Parser

HEAD_SECONDS = 30.0
"""How long the head of a request may take to arrive."""
REST_SECONDS = 30.0
"""How long the rest of a body may take to arrive after the response was sent."""
MAX_REST = 64 << 20
"""Bytes of the rest of a body that are read after the response was sent."""
UNREAD_SECONDS = 30.0
"""How long a client may leave a response unread if it exceeds the connection's buffers."""

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()
    RESPONSE = auto()  # or the body, for which the routes have a separate timeout
    REST = auto()  # of a body whose response was sent
    NEXT = auto()  # request


class Timer:
    """Calls ``act`` after some seconds unless it is stopped or restarted."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        self.stop()
        self.handle = asyncio.get_running_loop().call_later(seconds, self.act)

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None


class LingeringTransport:
    """A transport whose `close` reads the rest of a request first.

    The kernel resets a connection that is closed with data unread. A reset destroys a response in transit, such as a
    413 to a client that is still sending its body.
    """

    def __init__(self, transport: asyncio.Transport, linger: Callable[[], bool]) -> None:
        self.transport = transport
        self.linger = linger
        self.lingering = False

    def close(self) -> None:
        if self.is_closing():
            return
        if self.linger():
            self.lingering = True
            self.transport.write_eof()
            self.transport.resume_reading()
        else:
            self.transport.close()

    def is_closing(self) -> bool:
        return self.lingering or self.transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """Serves one connection.

    It aborts the connection if a client exceeds one of the limits above. After a 431 it also does so for the parser's
    limits.
    """

    head_seconds = HEAD_SECONDS
    rest_seconds = REST_SECONDS
    unread_seconds = UNREAD_SECONDS
    max_rest = MAX_REST

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser: Parser = Parser(self)  # type: ignore[assignment]
        self.phase = Phase.HEAD
        self.rest = 0
        self.seconds = {
            Phase.HEAD: self.head_seconds,
            Phase.REST: self.rest_seconds,
            # uvicorn's timer ends with the first bytes, even if they begin no request.
            Phase.NEXT: self.timeout_keep_alive,
        }

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, LingeringTransport(transport, self.linger)))
        self.read_timer = Timer(transport.abort)
        self.write_timer = Timer(transport.abort)
        self.read_timer.start(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self.read_timer.stop()
        self.write_timer.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self.enter(self.current_phase())
        if self.phase is Phase.REST:
            self.rest += len(data)
            if self.rest > self.max_rest:
                self.transport.abort()

    def current_phase(self) -> Phase:
        if self.cycle is not None and not self.cycle.response_complete:
            return Phase.RESPONSE
        if self.parser.in_body:
            return Phase.REST
        return Phase.HEAD if self.parser.in_head else Phase.NEXT

    def enter(self, phase: Phase) -> None:
        """Start the timer of a phase if the connection is not in it already."""
        if phase is self.phase and phase is not Phase.NEXT:
            return
        self.phase, self.rest = phase, 0
        self.read_timer.stop()
        if phase in self.seconds:
            self.read_timer.start(self.seconds[phase])

    def linger(self) -> bool:
        """Return whether the client is still sending a body. If so, wait for the rest of it."""
        sending = self.parser.in_body and not self.parser.too_large
        if sending:
            self.enter(Phase.REST)
        return sending

    def send_400_response(self, msg: str) -> None:
        if self.pipeline:
            # The client would treat it as the response to one of the waiting requests.
            self.transport.close()
        elif self.parser.too_large:
            self.transport.write(TOO_LARGE)
            self.transport.close()
        else:
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        self.write_timer.start(self.unread_seconds)
        super().pause_writing()

    def resume_writing(self) -> None:
        self.write_timer.stop()
        super().resume_writing()
