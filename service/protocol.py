"""HTTP as uvicorn speaks it, with bounds on what comes before a request's body."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 << 10
HEAD_SECONDS = 30.0

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHead(HttpToolsProtocol):
    """Closes a connection whose request line and headers take too many bytes, or too long to come.

    uvicorn has no such bound: one client could fill the memory with a header that never ends, or hold
    connections open by saying nothing.
    """

    max_head = MAX_HEAD
    head_seconds = HEAD_SECONDS
    head_size = 0
    in_head = True
    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
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

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.expect_head()

    def on_headers_complete(self) -> None:
        self.end_head()
        super().on_headers_complete()

    def expect_head(self) -> None:
        self.end_head()
        self.in_head = True
        self.head_timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def end_head(self) -> None:
        self.in_head, self.head_size = False, 0
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None
