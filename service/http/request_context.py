"""The context of a request, for its log line, metrics and span."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from service.errors import STATUS, Code, outcome_of
from service.telemetry.timing import Timing

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,63}")


@dataclass(slots=True)
class RequestContext:
    """Collects the values of a request for log, metrics and tracing."""

    request_id: str
    timing: Timing = field(default_factory=Timing)
    model: str = ""
    version: str = ""
    outcome: str | None = None  # if the status does not determine it
    fields: dict[str, Any] = field(default_factory=dict)  # for the log line
    inference: bool = False  # a route that classifies under a path that `service.http.middleware` does not know
    plain_error: bool = False  # errors are {"error": message}

    def outcome_of(self, status: int, request_timeout: float) -> str:
        """Return the request's outcome, one of OUTCOMES; ``request_timeout`` is the service's own, in seconds."""
        if self.outcome is not None:
            return self.outcome
        # Timers fire a little early.
        early = self.timing.total < 0.99 * request_timeout
        return "client_deadline" if status == STATUS[Code.DEADLINE] and early else outcome_of(status)

    def log_values(self, client: str) -> dict[str, Any]:
        """Return the values of the request's log line. ``client`` is its address, if known."""
        values = {"request_id": self.request_id, "ms": self.timing.total * 1e3, **self.fields}
        if client:
            values["client"] = client
        if self.model:
            values["model"] = f"{self.model}/{self.version}"
        return values


def context_of(request: Request) -> RequestContext:
    context: RequestContext = request.state.context
    return context


def request_id(headers: Mapping[str, str]) -> str:
    """Return the client's `X-Request-ID` if it is short and plain, else a new id."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
