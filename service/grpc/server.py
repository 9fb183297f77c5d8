"""The Open Inference Protocol over gRPC, beside HTTP and with the same limits, keys, metrics and pipeline.

It runs in the event loop of the HTTP server. Every method is registered with a stream of messages as its input, and
reads one message. Clients see no difference. The server decides when a message is read, and can limit the time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from time import perf_counter
from typing import Any

import grpc

from service.container import Container
from service.errors import STATUS, Code, ServiceError
from service.grpc.messages import SERVICE
from service.grpc.methods import METHODS, Invocation, Method
from service.http.body import deadline_of
from service.http.request_context import RequestContext, request_id

log = logging.getLogger("skipnet.access")

STATUS_CODES: Mapping[Code, grpc.StatusCode] = {
    Code.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Code.DAMAGED_IMAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    Code.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.METHOD_NOT_ALLOWED: grpc.StatusCode.UNIMPLEMENTED,
    Code.MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.BODY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.BODY_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Code.IMAGE_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNSUPPORTED_MEDIA_TYPE: grpc.StatusCode.INVALID_ARGUMENT,
    Code.INVALID_PARAMETER: grpc.StatusCode.INVALID_ARGUMENT,
    Code.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.CLIENT_GONE: grpc.StatusCode.CANCELLED,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
    Code.ENGINE_FAILED: grpc.StatusCode.INTERNAL,
    Code.NOT_READY: grpc.StatusCode.UNAVAILABLE,
    Code.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
}

RPCS_PER_IMAGE = 4
"""Requests in progress for each image that can be admitted. gRPC refuses more before it reads their messages."""
IDENTITY_ONLY = 1
"""Compressed messages are not accepted, because gRPC checks their size before it decompresses them."""


class GrpcServer:
    """Serves the methods of the protocol on ``port``. Port 0 is replaced by a free port."""

    def __init__(self, container: Container, port: int) -> None:
        self.container = container
        self.port = port
        settings = container.settings
        self._readers = asyncio.Semaphore(max(1, settings.max_bodies_size // settings.max_body_size))
        self._server: Any = None

    async def start(self) -> bool:
        """Begin to serve, and return whether the port was free. Call it in the event loop."""
        settings = self.container.settings
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_body_size),
                ("grpc.max_send_message_length", -1),
                ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
                # Several workers share the port. Two servers must not share it by mistake.
                ("grpc.so_reuseport", int(settings.workers > 1)),
            ],
            maximum_concurrent_rpcs=RPCS_PER_IMAGE * settings.max_queue_size,
        )
        handlers = {name: self._handler(name, method) for name, method in METHODS.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            self.port = self._server.add_insecure_port(f"{host}:{self.port}")
        except RuntimeError as error:
            log.error("gRPC cannot listen at %s, port %d: %s", settings.host, self.port, error)
            return False
        await self._server.start()
        log.info("listening", extra={"fields": {"grpc": f"{host}:{self.port}"}})
        return True

    async def stop(self, timeout: float) -> None:
        """Refuse new requests and give those in progress ``timeout`` seconds to end."""
        await self._server.stop(timeout)

    def _handler(self, name: str, method: Method) -> Any:
        async def respond(messages: AsyncIterator[bytes], rpc: Any) -> Any:
            return await self._respond(name, method, messages, rpc)

        return grpc.stream_unary_rpc_method_handler(respond, response_serializer=lambda each: each.SerializeToString())

    async def _respond(self, name: str, method: Method, messages: AsyncIterator[bytes], rpc: Any) -> Any:
        """Respond to one request. Inference requests are counted and logged."""
        headers = {key: value for key, value in rpc.invocation_metadata() or () if isinstance(value, str)}
        context = RequestContext(request_id(headers))
        status, failure = 499, None
        try:
            response = await self._run(method, messages, headers, rpc, context)
            status = 200
        except ServiceError as error:
            failure, context.outcome, context.fields["code"] = error, error.outcome, error.code
            status = STATUS[error.code]
        except asyncio.CancelledError:
            # gRPC itself cancels at the client's deadline.
            if rpc.time_remaining() == 0:
                status = STATUS[Code.DEADLINE]
            raise
        except Exception:
            log.exception("unexpected error", extra={"fields": {"request_id": context.request_id}})
            text = f"unexpected error; the log has it under request id {context.request_id}"
            failure, status = ServiceError(Code.INTERNAL, text), 500
        finally:
            self._finish(name, headers, rpc, context, status)
        if failure is not None:
            await rpc.abort(STATUS_CODES[failure.code], failure.message, trailers(context, failure))
        rpc.set_trailing_metadata(trailers(context))
        return response

    async def _run(
        self,
        method: Method,
        messages: AsyncIterator[bytes],
        headers: Mapping[str, str],
        rpc: Any,
        context: RequestContext,
    ) -> Any:
        deadline = deadline_of(context.timing.started, self.container.settings.request_timeout, rpc.time_remaining())
        with self.container.admission.hold_body() as hold:
            message = await self._read(messages, deadline)
            hold(len(message))
            return await method(Invocation(self.container, message, headers, deadline, context))

    async def _read(self, messages: AsyncIterator[bytes], deadline: float) -> bytes:
        """Read a request's message. As many are read at the same time as fit into the limit on all bodies."""
        try:
            async with asyncio.timeout(deadline - perf_counter()), self._readers:
                async for message in messages:
                    return message
        except TimeoutError as error:
            raise ServiceError(Code.BODY_TIMEOUT, "the message did not arrive before the deadline") from error
        raise ServiceError(Code.BAD_REQUEST, "the request has no message")

    def _finish(self, name: str, headers: Mapping[str, str], rpc: Any, context: RequestContext, status: int) -> None:
        context.timing.finish()
        inference = name == "ModelInfer"
        if inference:
            outcome = context.outcome_of(status, self.container.settings.request_timeout)
            self.container.metrics.requests.labels(context.model, context.version, outcome).inc()
            if self.container.tracing is not None:
                system = {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": name}
                self.container.tracing.export(f"{SERVICE}/{name}", headers, system, context, status)
        log.log(
            logging.INFO if inference or status >= 500 else logging.DEBUG,
            "gRPC %s %d",
            name,
            status,
            extra={"fields": context.log_values(rpc.peer())},
        )


def trailers(context: RequestContext, error: ServiceError | None = None) -> tuple[tuple[str, str], ...]:
    """Return the metadata after a response: the request's id, and for a refused request the time to wait."""
    trailing = [("x-request-id", context.request_id)]
    if error is not None and (seconds := error.headers.get("Retry-After")):
        trailing += [("retry-after", seconds), ("grpc-retry-pushback-ms", str(int(seconds) * 1000))]
    return tuple(trailing)
