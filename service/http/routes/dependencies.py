"""Dependencies and parameters of routes, and their OpenAPI descriptions."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, ValidationError

from service.container import Container
from service.errors import invalid

Parameters = TypeVar("Parameters", bound=BaseModel)


def container_of(request: Request) -> Container:
    container: Container = request.app.state.container
    return container


# A coroutine, because FastAPI would run a plain function in a thread.
async def _container(request: Request) -> Container:
    return container_of(request)


ContainerHere = Annotated[Container, Depends(_container)]

KEYED = [
    Security(scheme)
    for scheme in (
        HTTPBearer(auto_error=False, description="a key, if the server has keys"),
        APIKeyHeader(name="X-API-Key", auto_error=False, description="the same key in another header"),
    )
]
"""Describes the keys in OpenAPI. `service/http/keys.py` checks them."""


def read_query(model: type[Parameters], request: Request) -> Parameters:
    """Return the parsed query parameters.

    Raises ServiceError invalid_parameter.
    """
    return read_parameters(model, request.query_params if request.scope["query_string"] else {})


def read_parameters(model: type[Parameters], given: Mapping[str, str]) -> Parameters:
    """Return parsed query parameters or headers, at a tenth of the cost of FastAPI's parsing.

    Raises ServiceError invalid_parameter.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(error.errors(), model) from error


def described(model: type[BaseModel], place: str) -> list[dict[str, Any]]:
    """Return the OpenAPI parameters for the fields of a model; ``place`` is "query" or "header"."""
    return [
        {"name": name, "in": place, "required": False, "description": schema.pop("description"), "schema": schema}
        for name, schema in model.model_json_schema()["properties"].items()
    ]


class OipError(BaseModel):
    """The body of every error under /v2."""

    error: str


def taking(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON body that FastAPI does not read."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(each) for each in part]
        if not isinstance(part, dict):
            return part
        name = part.get("$ref", "").rpartition("/")[2]
        return {key: inlined(value) for key, value in (definitions[name] if name else part).items()}

    return {"requestBody": {"content": {"application/json": {"schema": inlined(schema)}}}}


def failing(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": OipError} for status in statuses}
