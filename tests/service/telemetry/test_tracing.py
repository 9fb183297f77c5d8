import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from models.errors import UserError
from service.repository.loaded_model import LoadedModel
from service.telemetry.tracing import Tracing
from tests.service.parts import NAME, PNG, Running, encoded, engine_of, picture

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_span_of_a_request_continues_the_clients_trace(start: Callable[..., Running]) -> None:
    server, exporter = start(), InMemorySpanExporter()
    server.container.tracing = Tracing(exporter)
    headers = PNG | {"traceparent": PARENT, "x-request-id": "mine"}
    response = server.client.post("/classify", content=encoded(picture(0)), headers=headers).json()
    server.client.get("/health/live")
    server.container.tracing.provider.force_flush()
    [span] = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("POST /classify", SpanKind.SERVER)
    assert span.context.trace_id == int(PARENT.split("-")[1], 16)
    assert span.parent is not None
    assert span.parent.span_id == int(PARENT.split("-")[2], 16)
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["skipnet.request_id"] == "mine"
    assert span.attributes["skipnet.model"] == NAME
    assert span.attributes["skipnet.skipped"] == response["routing"]["skipped"]
    inference = span.attributes["skipnet.inference_seconds"]
    assert inference == pytest.approx(response["timing_ms"]["inference"] / 1e3, abs=1e-5)
    assert span.start_time is not None
    assert span.end_time is not None
    assert (span.end_time - span.start_time) / 1e9 >= inference  # type: ignore[operator]
    assert span.resource.attributes["service.name"] == "skipnet"


def test_failure_is_marked(start: Callable[..., Running], model: LoadedModel) -> None:
    server, exporter = start(), InMemorySpanExporter()
    server.container.tracing = Tracing(exporter)
    engine_of(model).fails = lambda images: True  # noqa: ARG005
    server.client.post("/classify", content=encoded(picture(0)), headers=PNG)
    server.stop()
    [span] = exporter.get_finished_spans()  # sent at the end, without a flush
    assert span.status.status_code == StatusCode.ERROR


def test_a_silent_collector_does_not_delay_the_end(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.telemetry.tracing.CLOSE_TIMEOUT", 0.1)
    release = threading.Event()

    class Silent(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            release.wait(5)
            return super().export(spans)

    server, exporter = start(), Silent()
    server.container.tracing = Tracing(exporter)
    server.client.post("/classify", content=encoded(picture(0)), headers=PNG)
    server.stop()
    assert not exporter.get_finished_spans()
    release.set()


def test_opentelemetry_is_not_imported_without_tracing() -> None:
    code = (
        "import sys; from service.app import create_app; create_app(); "
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UserError, match=r"needs the extra 'tracing'.*install.*\[tracing\]"):
        Tracing()
