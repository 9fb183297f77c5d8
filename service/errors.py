"""Errors of requests with their codes, statuses and responses."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from service.http.paths import route_path


class Code(StrEnum):
    """The `code` of an error response."""

    BAD_REQUEST = "bad_request"
    DAMAGED_IMAGE = "damaged_image"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    BODY_TIMEOUT = "body_timeout"
    BODY_TOO_LARGE = "body_too_large"
    IMAGE_TOO_LARGE = "image_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INVALID_PARAMETER = "invalid_parameter"
    OVERLOADED = "overloaded"
    CLIENT_GONE = "client_gone"
    INTERNAL = "internal"
    ENGINE_FAILED = "engine_failed"
    NOT_READY = "not_ready"
    DEADLINE = "deadline_exceeded"


STATUS: Mapping[Code, int] = {
    Code.BAD_REQUEST: 400,
    Code.DAMAGED_IMAGE: 400,
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.METHOD_NOT_ALLOWED: 405,
    Code.MODEL_NOT_FOUND: 404,
    Code.BODY_TIMEOUT: 408,
    Code.BODY_TOO_LARGE: 413,
    Code.IMAGE_TOO_LARGE: 413,
    Code.UNSUPPORTED_MEDIA_TYPE: 415,
    Code.INVALID_PARAMETER: 422,
    # Not 5xx: that would count against the availability target, and proxies would eject a busy replica.
    Code.OVERLOADED: 429,
    # This is only logged, because the client has disconnected. The number is nginx's.
    Code.CLIENT_GONE: 499,
    Code.INTERNAL: 500,
    Code.ENGINE_FAILED: 500,
    Code.NOT_READY: 503,
    Code.DEADLINE: 504,
}


class ErrorDetail(BaseModel):
    code: Code = Field(description="the error's code, for programs")
    message: str = Field(description="the error and its remedy, for people")


class ErrorAnswer(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class ServiceError(Exception):
    """An error of a request. It becomes an `ErrorAnswer` with the status of its code.

    ``outcome`` is one of OUTCOMES; by default the status determines it.
    """

    def __init__(
        self, code: Code, message: str, headers: Mapping[str, str] | None = None, outcome: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.outcome = outcome


def not_ready(message: str, *, closing: bool = False) -> ServiceError:
    """Return the error for a request that cannot be served now. Another replica or a later attempt may serve it."""
    return ServiceError(Code.NOT_READY, message, {"Retry-After": "1"} | ({"Connection": "close"} if closing else {}))


def has_plain_error(scope: Scope) -> bool:
    """Return whether a request's errors are only a text, as in the Open Inference Protocol and other dialects."""
    path, context = route_path(scope), scope.get("state", {}).get("context")
    return path == "/v2" or path.startswith("/v2/") or (context is not None and context.plain_error)


def error_response(scope: Scope, error: ServiceError, status: int | None = None) -> Response:
    """Return the response for an error, and store the error for the log.

    ``status`` replaces the status of its code.
    """
    if context := scope.get("state", {}).get("context"):
        context.fields["code"] = error.code
        context.outcome = error.outcome
    # A message may quote characters of the client that cannot be encoded in UTF-8.
    message = error.message.encode(errors="backslashreplace").decode()
    detail: dict[str, Any] = {"code": error.code, "message": message}
    content = {"error": message if has_plain_error(scope) else detail}
    return JSONResponse(content, status or STATUS[error.code], error.headers)


def invalid(problems: Iterable[Mapping[str, Any]], model: type[BaseModel] | None = None) -> ServiceError:
    """Return pydantic's errors as one error. ``model`` has the known parameters."""
    return ServiceError(Code.INVALID_PARAMETER, "; ".join(describe_problem(each, model) for each in problems))


def describe_problem(problem: Mapping[str, Any], model: type[BaseModel] | None = None) -> str:
    """Return the message of one pydantic error, with the parameter's name."""
    name = problem["loc"][-1] if problem["loc"] else "the body"
    if problem["type"] == "extra_forbidden" and model is not None:
        return f"{name}: unknown parameter; expected one of {', '.join(model.model_fields)}"
    return f"{name}: {problem['msg']}"


OUTCOMES = ("ok", "bad_input", "rejected", "cancelled", "unavailable", "deadline", "client_deadline", "error")
"""Results of requests. "client_deadline": the client's deadline passed, which was before the service's own."""


def outcome_of(status: int) -> str:
    """Return the outcome of a status, one of OUTCOMES."""
    special = {429: "rejected", 499: "cancelled", 503: "unavailable", 504: "deadline"}
    if status in special:
        return special[status]
    return "ok" if status < 400 else "bad_input" if status < 500 else "error"


def documented(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` for these errors, for the OpenAPI document."""
    described: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        entry = described.setdefault(STATUS[code], {"model": ErrorAnswer, "description": ""})
        entry["description"] += f"{', ' if entry['description'] else ''}{code.value}"
    return described
