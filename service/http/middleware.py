"""Middleware around every request."""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.container import Container
from service.errors import Code, ServiceError, error_response
from service.http.compression import Decompressed
from service.http.paths import route_path, without_host
from service.http.request_context import RequestContext, request_id

log = logging.getLogger("skipnet.access")

INFERENCE_PATH = re.compile(r"/classify|/v2/models/[^/]+(/versions/[^/]+)?/infer")
"""The paths that classify, which `skipnet_requests_total` counts. The routes of the dialects are counted too."""


def is_inference(scope: Scope) -> bool:
    return scope["method"] == "POST" and INFERENCE_PATH.fullmatch(route_path(scope)) is not None


class Access:
    """Gives each request an id and a context, writes its log line, and counts it.

    Unexpected exceptions become a 500 whose message names the request id.
    """

    def __init__(self, app: ASGIApp, container: Container) -> None:
        self.app = app
        self.container = container

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = RequestContext(request_id(Headers(scope=scope)))
        scope.setdefault("state", {})["context"] = context
        status = 0

        async def send_start(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = context.request_id
                if "location" in headers:
                    headers["Location"] = without_host(headers["location"])
                if self.container.health.draining:
                    # Otherwise a client could send another request while the process ends.
                    headers["Connection"] = "close"
            await send(message)

        try:
            # Routes for GET also serve HEAD; uvicorn omits the body.
            routed = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await self.app(routed, receive, send_start)
        except ClientDisconnect:
            pass  # The client disconnected while it sent its body.
        except Exception:
            log.exception("unexpected error", extra={"fields": {"request_id": context.request_id}})
            if status == 0:
                message = f"unexpected error; the log has it under request id {context.request_id}"
                await error_response(scope, ServiceError(Code.INTERNAL, message))(scope, receive, send_start)
            else:
                status = 500
        finally:
            self.finish(scope, context, status)

    def finish(self, scope: Scope, context: RequestContext, status: int) -> None:
        context.timing.finish()
        inference = context.inference or is_inference(scope)
        probe = "/health/" in route_path(scope)
        # No status: the client disconnected before the response began.
        status = status or 499
        if inference:
            outcome = context.outcome_of(status, self.container.settings.request_timeout)
            self.container.metrics.requests.labels(context.model, context.version, outcome).inc()
            if self.container.tracing is not None:
                self.container.tracing.finished(scope, context, status)
        values = context.log_values(scope["client"][0] if scope.get("client") else "")
        log.log(
            logging.INFO if inference or (status >= 500 and not probe) else logging.DEBUG,
            "%s %s %d",
            scope["method"],
            route_path(scope),
            status,
            extra={"fields": values},
        )


class BodyLimit:
    """Limits the size of each body and of all bodies together. Decompresses bodies.

    A request with a larger Content-Length is refused before its body is read. Other bodies are refused once they exceed
    the limit. The error is raised in the route that reads the body. So it becomes a response, and is counted and
    logged, like any other error.
    """

    def __init__(self, app: ASGIApp, container: Container) -> None:
        self.app = app
        self.admission = container.admission
        self.limit = container.settings.max_body_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # The HTTP parser has checked that it is a number.
        length = int(headers.get("content-length", "0"))
        if encoding := headers.get("content-encoding"):
            receive = Decompressed(receive, encoding)
        received = 0
        with self.admission.hold_body() as hold:

            async def limited() -> Message:
                nonlocal received
                if max(length, received) > self.limit:
                    raise self.too_large()
                message = await receive()
                if message["type"] == "http.request":
                    received += len(message["body"])
                    if received > self.limit:
                        raise self.too_large()
                    hold(len(message["body"]))
                return message

            await self.app(scope, limited, send)

    def too_large(self) -> ServiceError:
        return ServiceError(Code.BODY_TOO_LARGE, f"the body is larger than {self.limit:,} bytes, the limit")


Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """Passes a POST directly to its endpoint, without FastAPI's routing.

    Routing takes more than a tenth of a request. With it, a 32x32 PNG to POST /classify took 1.15 instead of 0.99 ms of
    the event loop's thread, and 2.03 instead of 1.79 ms for the client. (uvicorn, one connection, the least of six
    interleaved runs of 300 requests.) The endpoints are routes too, for the OpenAPI document and for other methods.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        self.app = app
        self.endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        posted = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self.endpoints.get(route_path(scope)) if posted else None
        if endpoint is None:
            await self.app(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive, send))
        except ServiceError as error:
            response = error_response(scope, error)
        await response(scope, receive, send)
