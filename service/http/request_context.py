"""The context of a request, which feeds its log line, metrics and span."""

import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

from service.telemetry.timing import Timing

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,63}")


@dataclass(slots=True)
class RequestContext:
    """Collects what the log, the metrics and the tracing need of a request."""

    request_id: str
    timing: Timing = field(default_factory=Timing)
    model: str = ""
    version: str = ""
    outcome: str | None = None  # where the status does not say it
    fields: dict[str, Any] = field(default_factory=dict)  # for the log line


def context_of(request: Request) -> RequestContext:
    context: RequestContext = request.state.context
    return context


def request_id(headers: Headers) -> str:
    """Return the client's `X-Request-ID` if it is short and plain, else a new id."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
