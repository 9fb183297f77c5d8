"""The HTTP parser: httptools' with limits on heads and without protocol upgrades.

httptools has no limit on the size of a head, on the trailers after a chunked body, or on pipelined requests. It also
stops at a request to upgrade the protocol. Java's HTTP client sends such a request by default, and its body would be
lost.
"""

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 32 << 10
"""Bytes of a request line with its headers, and of the trailers after a chunked body."""
LINE_BYTES = 4
"""Bytes of a header line beside its name and value: a colon, a space and the line end."""
MAX_HEADERS = 100
"""Header lines of a request. Many short lines take fifty times their bytes in memory."""
MAX_PIPELINED = 64
"""Requests that may wait on a connection for the response to an earlier request."""


class Parser:
    """Parses the requests of a connection in place of uvicorn's parser.

    It tracks the current message: ``in_head`` and ``in_body`` are both false between messages.
    """

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self.protocol = protocol
        self.in_head = self.in_body = False
        self.too_large = False  # whether a limit ended the parsing
        self.unparsed = 0  # bytes of a head or of trailers since the last progress
        self.head_bytes = 0  # of the current head or trailers, as far as httptools has parsed them
        self.progress = False
        self.restart()

    def restart(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        # As in uvicorn, a request after one with `Connection: close` does not discard the response.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.get_method = self.parser.get_method
        self.get_http_version = self.parser.get_http_version
        self.should_keep_alive = self.parser.should_keep_alive

    def should_upgrade(self) -> bool:
        """Return False: no other protocol is supported."""
        return False

    def feed_data(self, data: bytes) -> None:
        """Parse bytes.

        Raises HttpParserError. ``too_large`` tells whether a limit was exceeded.
        """
        self.progress = False
        self.parse(data)
        self.unparsed = 0 if self.progress else self.unparsed + len(data)
        # For a head that is not complete. `on_url` and `on_header` see those that are.
        self.limit(self.unparsed, MAX_HEAD)

    def limit(self, amount: int, most: int) -> None:
        if amount > most:
            self.too_large = True
            raise httptools.HttpParserError(f"{amount} exceeds the limit of {most}")

    def parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self.asks_to_upgrade:
                    return
                data = self.head_without_upgrade() + data[upgrade.args[0] :]
                self.restart()

    @property
    def asks_to_upgrade(self) -> bool:
        # httptools treats every CONNECT request as an upgrade.
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def head_without_upgrade(self) -> bytes:
        """Return the head of the current request without its upgrade headers."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.protocol.url, version)]
        for name, value in self.protocol.headers:
            if name == b"connection":
                value = b",".join(each for each in value.split(b",") if each.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join((*lines, b"", b""))

    def on_message_begin(self) -> None:
        self.limit(len(self.protocol.pipeline), MAX_PIPELINED - 1)
        self.in_head = self.progress = True
        self.head_bytes = 0
        self.protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.count_head(len(url))
        self.protocol.on_url(url)

    def count_head(self, size: int) -> None:
        self.head_bytes += size
        self.limit(self.head_bytes, MAX_HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count_head(len(name) + len(value) + LINE_BYTES)
        # Trailers are dropped.
        if self.in_head:
            self.limit(len(self.protocol.headers), MAX_HEADERS - 1)
            self.protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        self.progress = True
        self.head_bytes = 0
        if not self.asks_to_upgrade:
            self.in_head, self.in_body = False, True
            self.protocol.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.progress = True
        self.protocol.on_body(body)

    def on_message_complete(self) -> None:
        if not self.asks_to_upgrade:
            self.in_body = False
            self.protocol.on_message_complete()
