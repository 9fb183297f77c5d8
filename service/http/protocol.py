"""HTTP as uvicorn speaks it, with bounds on what comes before a request's body."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

Refuse = Callable[[Scope, Iterable[tuple[bytes, bytes]], bool], bytes | None]
"""From a request's scope, headers that every answer has, and whether the connection goes on, to a refusal, if any."""

MAX_HEAD, MAX_HEADERS = 32 << 10, 100
"""Bytes of a head, and its lines: many short ones take fifty times their bytes."""
MAX_PIPELINED = 64
"""Requests that may wait on a connection behind the one that is being answered."""
HEAD_SECONDS = 30.0
LEFTOVER_SECONDS = 30.0
"""How long the rest of a body may take to come once the request is answered."""
UNREAD_SECONDS = 30.0
"""How long a client may read nothing of what waits to be sent to it."""
GRACE_SECONDS = 0.25
"""How long a connection on which nothing is under way stays open at the end: its next request may be on its way, and
would be lost with it; so it is answered, if only with 503."""
REST_SECONDS = 0.25
"""How long a connection is not read after a refusal. A client that asks again at once, unlike the many that heed
`Retry-After`, would otherwise take the time in which others are answered."""

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class TooMuch(Exception):
    """A head has too many lines, or too many requests wait on a connection."""


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
        held, self.held = b"".join(self.held), []
        if held and not self.transport.is_closing():
            self.transport.write(held)

    def close(self) -> None:
        self.flush()
        self.transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class Timer:
    """Acts once its time is over, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, act: Callable[[], object]) -> None:
        self.loop = loop
        self.act = act
        self.handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        self.stop()
        self.handle = self.loop.call_later(seconds, self.act)

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request line and headers take too many bytes, or too long to come, on which too many
    requests wait, whose body goes on long after the answer, or whose answers nobody reads; and answers what ``refuse``
    refuses, of which the app never hears.

    uvicorn has no such bounds: one client could fill the memory with a header or trailers that never end, or with
    requests that come faster than their answers, or hold connections open by saying nothing. And it drops the body of a
    request that asks to upgrade the connection, as Java's client does of itself; here such a request is answered as if
    it had not asked.
    """

    max_head = MAX_HEAD
    head_seconds = HEAD_SECONDS
    leftover_seconds = LEFTOVER_SECONDS
    unread_seconds = UNREAD_SECONDS
    grace_seconds = GRACE_SECONDS
    rest_seconds = REST_SECONDS
    unused = 0  # bytes since the head, or what is no body behind it, began
    in_head = True
    in_body = False
    counted = True  # what is being read, unless it has a part of a body, or begins a head behind one
    running: RequestResponseCycle | None = None

    def __init__(self, *arguments: Any, refuse: Refuse, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.refuse = refuse

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self.head_timer = Timer(self.loop, self.transport.close)
        self.leftover_timer = Timer(self.loop, self.transport.close)
        self.unread_timer = Timer(self.loop, self.transport.abort)
        self.expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self.head_timer, self.leftover_timer, self.unread_timer):
            timer.stop()
        # uvicorn tells the last of several requests only.
        for cycle in (self.running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self.counted = True
        try:
            self.parse(data)
        except httptools.HttpParserError as error:
            self.give_up(error)
            return
        if (self.in_head or self.in_body) and self.counted:
            self.unused += len(data)
            if self.unused > self.max_head and not self.transport.is_closing():
                self.refuse_head()
        if self.idle and self.timeout_keep_alive_task is None:
            # What lies between two requests begins none, but it ended the wait for the next.
            self.expect_head()

    def give_up(self, error: httptools.HttpParserError) -> None:
        """Close a connection on which something came that can't be read, or too much; say which."""
        if self.pipeline:
            # What is said now would be taken for the answer to one of the requests that wait.
            self.transport.close()
        elif isinstance(error.__context__, TooMuch):
            self.refuse_head()
        else:
            self.logger.warning("%s sent what is no HTTP/1.1 request: %s", self.client and self.client[0], error)
            self.send_400_response("Invalid HTTP request received.")

    def refuse_head(self) -> None:
        self.transport.write(TOO_LARGE)
        self.transport.close()

    @property
    def idle(self) -> bool:
        return not (self.in_head or self.in_body) and (self.cycle is None or self.cycle.response_complete)

    def parse(self, data: bytes) -> None:
        """Parse what came; the parser ends at a request to upgrade, and another goes on where it ended."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self.asks_to_upgrade:
                    return
                data = self.head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    @property
    def asks_to_upgrade(self) -> bool:
        # To the parser CONNECT is an upgrade by itself.
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def head_without_upgrade(self) -> bytes:
        """Return the head of a request as it were if it did not ask to upgrade."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(each for each in value.split(b",") if each.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join((*lines, b"", b""))

    def on_response_complete(self) -> None:
        # Under load the loop's next step is tens of milliseconds away.
        cast(OneWrite, self.transport).flush()
        if self.in_body and not self.pipeline:
            self.leftover_timer.start(self.leftover_seconds)
        super().on_response_complete()
        if self.pipeline:
            # uvicorn reads on after each answer, however many requests wait.
            self.flow.pause_reading()

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(self.grace_seconds, super().shutdown)
        else:
            super().shutdown()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise TooMuch
        super().on_message_begin()
        self.expect_head()
        self.counted = False

    def on_header(self, name: bytes, value: bytes) -> None:
        # Nobody reads the trailers of a body.
        if self.in_head:
            if len(self.headers) >= MAX_HEADERS:
                raise TooMuch
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.in_head, self.unused = False, 0
        self.head_timer.stop()
        if not self.asks_to_upgrade:
            self.in_body = True
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.counted = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.asks_to_upgrade:
            self.in_body = False
            self.leftover_timer.stop()
            super().on_message_complete()

    def pause_writing(self) -> None:
        self.unread_timer.start(self.unread_seconds)
        super().pause_writing()

    def resume_writing(self) -> None:
        self.unread_timer.stop()
        super().resume_writing()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
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
        if not (self.transport.is_closing() or self.flow.read_paused):
            self.transport.resume_reading()

    def expect_head(self) -> None:
        self.in_head, self.unused = True, 0
        self.head_timer.start(self.head_seconds)
