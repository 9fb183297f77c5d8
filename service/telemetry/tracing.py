"""OpenTelemetry spans of requests. Imported only with `--tracing`.

The standard `OTEL_…` variables set the collector (`OTEL_EXPORTER_OTLP_ENDPOINT`) and the sampling
(`OTEL_TRACES_SAMPLER`). A request's `traceparent` header makes its span part of the client's trace.
"""

import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from models.errors import needs_extra
from service.telemetry.timing import STAGES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from service.http.request_context import RequestContext

CLOSE_TIMEOUT = 3.0
"""Seconds for sending the last spans."""


class Tracing:
    """Makes a server span of each inference request, from the same context as its headers, metrics and log line."""

    def __init__(self, exporter: "SpanExporter | None" = None) -> None:
        """Send spans to ``exporter``, by default OTLP over HTTP.

        Raises UserError if the packages are missing.
        """
        with needs_extra("tracing", "--tracing"):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        name = os.environ.get("OTEL_SERVICE_NAME", "skipnet")
        self.provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
        # A thread sends the spans in batches, so that no request waits for it.
        self.provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self.tracer = self.provider.get_tracer("skipnet")
        self.propagator = TraceContextTextMapPropagator()
        self.kind, self.error = SpanKind.SERVER, StatusCode.ERROR

    def finished(self, scope: Scope, context: "RequestContext", status: int) -> None:
        """Export the span of a finished HTTP request."""
        route = getattr(scope.get("route"), "path", scope["path"])
        attributes = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
        }
        self.export(f"{scope['method']} {route}", Headers(scope=scope), attributes, context, status)

    def export(
        self,
        name: str,
        headers: Mapping[str, str],
        attributes: Mapping[str, str | int],
        context: "RequestContext",
        status: int,
    ) -> None:
        """Export a span with ``attributes`` and those of every request. From ``status`` 500 on it is an error."""
        end = time.time_ns()
        span = self.tracer.start_span(
            name,
            context=self.propagator.extract(dict(headers)),
            kind=self.kind,
            start_time=end - int(context.timing.total * 1e9),
            attributes={
                **attributes,
                "skipnet.request_id": context.request_id,
                "skipnet.model": context.model,
                "skipnet.version": context.version,
                "skipnet.batch_size": context.timing.batch_size,
                **{f"skipnet.{stage}_seconds": getattr(context.timing, stage) for stage in STAGES},
                **{f"skipnet.{name}": value for name, value in context.fields.items()},
            },
        )
        if status >= 500:
            span.set_status(self.error)
        span.end(end)

    def close(self) -> None:
        """Send the last spans within CLOSE_TIMEOUT, so that a slow collector does not delay the end of the process."""
        # The provider's own timeout is 30 seconds and cannot be set.
        sending = threading.Thread(target=self.provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(CLOSE_TIMEOUT)
