"""HTTP as uvicorn speaks it, with bounds on what comes before a request's body."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

Refuse = Callable[[Scope, Iterable[tuple[bytes, bytes]], bool], bytes | None]
"""From a request's scope, headers that every answer has, and whether the connection goes on, to a refusal, if any."""

MAX_HEAD = 64 << 10
HEAD_SECONDS = 30.0
GRACE_SECONDS = 0.25
"""How long a connection on which nothing is under way stays open at the end: its next request may be on its way, and
would be lost with it; so it is answered, if only with 503."""
REST_SECONDS = 0.25
"""How long a connection is not read after a refusal. A client that asks again at once, unlike the many that heed
`Retry-After`, would otherwise take the time in which others are answered."""

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class OneWrite:
    """A transport that sends together what is written in one step of the event loop.

    uvicorn writes an answer's head and its body apart: two system calls, and two packets for a client to wake for.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.transport = transport
        self.loop = loop
        self.held: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self.held:
            self.loop.call_soon(self.flush)
        self.held.append(data)

    def flush(self) -> None:
        if self.held:
            self.transport.write(b"".join(self.held))
            self.held.clear()

    def close(self) -> None:
        self.flush()
        self.transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request line and headers take too many bytes, or too long to come; and answers what
    ``refuse`` refuses, of which the app never hears.

    uvicorn has no such bounds: one client could fill the memory with a header that never ends, or hold
    connections open by saying nothing.
    """

    max_head = MAX_HEAD
    head_seconds = HEAD_SECONDS
    grace_seconds = GRACE_SECONDS
    rest_seconds = REST_SECONDS
    head_size = 0
    in_head = True
    head_timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, refuse: Refuse, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.refuse = refuse

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self.expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.in_head:
            self.head_size += len(data)
            if self.head_size > self.max_head and not self.transport.is_closing():
                self.transport.write(TOO_LARGE)
                self.transport.close()

    def on_response_complete(self) -> None:
        # Under load the loop's next step is tens of milliseconds away.
        cast(OneWrite, self.transport).flush()
        super().on_response_complete()

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(self.grace_seconds, super().shutdown)
        else:
            super().shutdown()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.expect_head()

    def on_headers_complete(self) -> None:
        self.end_head()
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        refusal = self.refuse(cast(Scope, cycle.scope), self.server_state.default_headers, cycle.keep_alive)
        if refusal is None:
            # The refusal of a request in the same packet may have begun to wait for another.
            self._unset_keepalive_if_required()
            super()._start_asgi_task(cycle, app)
            return
        # Whatever comes of its body is not kept.
        cycle.response_started = cycle.response_complete = True
        self.transport.write(refusal)
        if not cycle.keep_alive:
            self.transport.close()
        if self.pipeline:
            # Not at once: each of any number of requests behind this one would be a call within a call.
            self.loop.call_soon(cycle.on_response)
        else:
            cycle.on_response()
        self.transport.pause_reading()
        self.loop.call_later(self.rest_seconds, self.read_again)

    def read_again(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def expect_head(self) -> None:
        self.end_head()
        self.in_head = True
        self.head_timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def end_head(self) -> None:
        self.in_head, self.head_size = False, 0
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None
