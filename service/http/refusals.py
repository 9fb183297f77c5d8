"""Refusing to classify while the house is full: said on the wire, before there is a request to route.

Refusing has to be far cheaper than answering: under an overload of many times what can be answered it would otherwise
take the place of answering.
"""

import asyncio
import logging
from collections.abc import Iterable
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import Scope

from service.container import Container
from service.errors import Code, ServiceError, error_answer, in_oip
from service.http.middleware import is_inference
from service.http.request_context import request_id

log = logging.getLogger("skipnet.access")

LOG_SECONDS = 1.0


class Refusals:
    """Words the 429s of a full house, counts them, and logs once a second how many there were."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.counter = container.metrics.requests.labels("", "", "rejected")
        self.unlogged = 0

    def answer(self, scope: Scope, common: Iterable[tuple[bytes, bytes]], keep_alive: bool) -> bytes | None:
        """Return a 429 as it goes over the wire, with ``common`` headers; None where a request goes on to the app.

        There it meets a bound as well, at more cost, but then its headers tell a browser's page of other origins, or
        its span a trace.
        """
        container = self.container
        if not container.admission.saturated or container.health.draining or not is_inference(scope):
            return None
        headers = Headers(scope=scope)
        if container.tracing is not None or (container.settings.cors_origins and "origin" in headers):
            return None
        error = container.admission.queue_full()
        self.count()
        head, body = words(in_oip(scope), error.message, error.headers["Retry-After"])
        lines = b"".join(b"%b: %b\r\n" % each for each in common)
        identity = b"x-request-id: %b\r\n" % request_id(headers).encode()
        return b"".join((head, lines, identity, b"" if keep_alive else b"connection: close\r\n", b"\r\n", body))

    def count(self) -> None:
        self.counter.inc()
        if not self.unlogged:
            asyncio.get_running_loop().call_later(LOG_SECONDS, self.flush)
        self.unlogged += 1

    def flush(self) -> None:
        """Log what was refused since the last time."""
        if self.unlogged:
            fields = {"requests": self.unlogged, "queue": self.container.admission.image_count}
            log.warning("refused with 429: the queue is full", extra={"fields": fields})
            self.unlogged = 0


@lru_cache(maxsize=64)
def words(oip: bool, message: str, retry_after: str) -> tuple[bytes, bytes]:
    """Return the refusal's status line and headers, and its body."""
    path = "/v2/" if oip else "/"
    error = ServiceError(Code.OVERLOADED, message, {"Retry-After": retry_after})
    response = error_answer({"path": path}, error)
    head = b"HTTP/1.1 429 Too Many Requests\r\n" + b"".join(b"%b: %b\r\n" % each for each in response.raw_headers)
    return head, bytes(response.body)
