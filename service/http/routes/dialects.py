"""Run the images of a request in another service's shape. A module for each shape reads and writes it."""

import base64
import binascii
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from types import ModuleType
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import UserError
from service.container import Container
from service.errors import Code, ServiceError, describe_problem
from service.http.body import deadline_of, read_body
from service.http.oip import MAX_JSON
from service.http.request_context import context_of
from service.http.routes.classify import ClassifyHeaders
from service.http.routes.dependencies import container_of, read_parameters, read_query
from service.inference.result import ImageResult

Body = TypeVar("Body", bound=BaseModel)

JSON = "application/json"


class ModelQuery(BaseModel):
    """The query of every request, which chooses the model."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="default: the server's default model")
    version: int | None = Field(None, ge=0, description="default: the promoted or the newest one")


class ComputeParameters(BaseModel):
    """How much is computed, as in the query of /classify. Unknown members are ignored, as other services do."""

    execute_threshold: float | None = Field(None, ge=0, le=1)
    compute_budget: float | None = Field(None, ge=0, le=1)
    min_margin: float | None = Field(None, ge=0, le=1)


@dataclass(frozen=True)
class Images:
    """The encoded images of a request, and how much to compute for each."""

    files: list[bytes]
    parameters: ComputeParameters


async def run(
    request: Request, read: Callable[[str, bytes], Images]
) -> tuple[Images, list[ImageResult], list[str], dict[str, str]]:
    """Return the images of a request, their results, the model's labels and the response's headers with the timing.

    ``read`` gets the content type, in lower case and without parameters, and the body. Raises ServiceError, whose
    response has the shape ``{"error": message}``.
    """
    container, context = container_of(request), context_of(request)
    context.inference = context.plain_error = True
    container.inference_keys.check(request.headers)
    query = read_query(ModelQuery, request)
    timing = context.timing
    headers = read_parameters(ClassifyHeaders, request.headers)
    deadline = deadline_of(timing.started, container.settings.request_timeout, headers.timeout)
    container.health.require_accepting()
    with container.lease(query.model, query.version, request.headers) as loaded:
        context.model, context.version = loaded.name, str(loaded.version)
        container.admission.refuse_if_saturated(loaded)
        images = await read_images(request, container, deadline, read)
        timing.receive = perf_counter() - timing.started
        route = container.degradation.route(loaded, images.parameters, headers.degrade)
        with container.admission.admit(len(images.files), loaded, deadline, timing.started):
            results = await container.pipeline.run(
                loaded,
                images.files,
                threshold=route.threshold,
                deadline=deadline,
                timing=timing,
                disconnected=request.receive(),
            )
        timing.finish()
        container.metrics.observe_request(loaded, timing, context.request_id, results, route)
    context.fields |= {"images": len(results), "skipped": sum(each.skipped for each in results)}
    return images, results, loaded.labels, timing.headers()


async def read_images(
    request: Request, container: Container, deadline: float, read: Callable[[str, bytes], Images]
) -> Images:
    """Return the images in a request's body, at most as many as can be admitted."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await read_body(request.body(), deadline)
    async with container.json_turn.take(len(body) if kind == JSON else 0, deadline):
        images = read(kind, body)
    if len(images.files) > container.admission.max_images:
        raise ServiceError(
            Code.INVALID_PARAMETER,
            f"{len(images.files)} images in one request; at most {container.admission.max_images} are admitted",
        )
    return images


def read_json(body: bytes, model: type[Body]) -> Body:
    """Return a JSON body.

    Raises ServiceError body_too_large or bad_request.
    """
    if len(body) > MAX_JSON:
        raise ServiceError(Code.BODY_TOO_LARGE, f"more than {MAX_JSON} bytes of JSON; send fewer or smaller images")
    try:
        return model.model_validate(json.loads(body))
    except ValidationError as error:
        raise ServiceError(Code.BAD_REQUEST, describe_problem(error.errors()[0], model)) from error
    except (ValueError, RecursionError) as error:
        raise ServiceError(Code.BAD_REQUEST, f"the request is not JSON: {error}") from error


def from_base64(text: str) -> bytes:
    """Return the bytes of an image in base64, which may have the prefix of a data URL.

    Raises ServiceError bad_request.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        image = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError(Code.BAD_REQUEST, f"an image must be base64: {error}; no URL is fetched") from error
    if not image:
        raise ServiceError(Code.BAD_REQUEST, "the image is empty")
    return image


def ready(request: Request) -> dict[str, Any]:
    """Return the body of a readiness probe.

    Raises ServiceError not_ready with the reasons.
    """
    context_of(request).plain_error = True
    if reasons := container_of(request).health.not_ready():
        raise ServiceError(Code.NOT_READY, "; ".join(reasons))
    return {"status": "ready"}


def routes_of(dialects: Collection[str]) -> list[ModuleType]:
    """Return the modules of the routes of ``dialects``.

    Raises UserError if two of them have the same path.
    """
    modules = [import_module(f"service.http.routes.{name}") for name in dict.fromkeys(dialects)]
    owners: dict[tuple[str, str], str] = {}
    for name, module in zip(dict.fromkeys(dialects), modules, strict=True):
        for route in module.router.routes:
            for method in route.methods:
                other = owners.setdefault((method, route.path), name)
                if other != name:
                    raise UserError(
                        f"the dialects {other} and {name} both serve {method} {route.path}: set another path by "
                        "AIP_PREDICT_ROUTE and AIP_HEALTH_ROUTE, or leave one out"
                    )
    return modules
