"""OpenTelemetry spans of requests, where `--tracing` asks for them; without it nothing of this is imported.

The standard `OTEL_…` variables say where spans go (`OTEL_EXPORTER_OTLP_ENDPOINT`) and how many are kept
(`OTEL_TRACES_SAMPLER`). A client's `traceparent` header is continued.
"""

import os
import threading
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from models.errors import UserError
from service.telemetry.timing import STAGES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from service.http.request_context import RequestContext

PATIENCE = 3.0
"""Seconds that the last spans may take to be sent."""


class Tracing:
    """Makes one server span of each request that classifies, from the record that feeds headers and metrics too."""

    def __init__(self, exporter: "SpanExporter | None" = None) -> None:
        """``exporter`` stands in for OTLP over HTTP. Raises UserError where the packages are missing."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise UserError("tracing needs OpenTelemetry: pip install 'skipnet-serve[tracing]'") from error
        name = os.environ.get("OTEL_SERVICE_NAME", "skipnet")
        self.provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
        # Sent by a thread of its own, in batches: no request waits for it.
        self.provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self.tracer = self.provider.get_tracer("skipnet")
        self.propagator = TraceContextTextMapPropagator()
        self.kind, self.error = SpanKind.SERVER, StatusCode.ERROR

    def finished(self, scope: Scope, context: "RequestContext", status: int) -> None:
        """Export a request that was answered just now."""
        end = time.time_ns()
        route = getattr(scope.get("route"), "path", scope["path"])
        span = self.tracer.start_span(
            f"{scope['method']} {route}",
            context=self.propagator.extract(dict(Headers(scope=scope))),
            kind=self.kind,
            start_time=end - int(context.timing.total * 1e9),
            attributes={
                "http.request.method": scope["method"],
                "http.route": route,
                "http.response.status_code": status,
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
        """Send what was not sent yet, within PATIENCE: the process does not end later for a collector's sake."""
        # Its own bound, of 30 seconds, can't be set.
        sending = threading.Thread(target=self.provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(PATIENCE)
