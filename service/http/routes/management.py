"""Manage the model repository by the extension of the Open Inference Protocol."""

from collections.abc import Awaitable
from functools import partial
from typing import TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.container import Container
from service.errors import Code, ServiceError, describe_problem
from service.http.body import deadline_of, read_body
from service.http.oip import NullIsAbsent
from service.http.request_context import context_of
from service.http.routes.dependencies import KEYED, ContainerHere, container_of, failing, taking
from service.repository.loading import LoadError
from service.repository.promotion import Change, promote, roll_back
from service.repository.repository import State

Content = TypeVar("Content", bound=BaseModel)
Result = TypeVar("Result")

MAX_BODY = 4 << 10
"""Bytes. Requests here need about a hundred."""

ERRORS = failing(400, 401, 403, 408, 413, 429)

router = APIRouter(prefix="/repository", dependencies=KEYED)


class IndexEntry(BaseModel):
    name: str
    version: str
    state: State
    reason: str = ""


class IndexRequest(NullIsAbsent):
    ready: bool = Field(default=False, description="only served versions")


class ChangeParameters(NullIsAbsent):
    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(default=None, ge=0, description="default: the newest, or on unload every one")
    unload_dependents: bool = Field(
        default=False, description="Triton's client sends it; it is the same for every model"
    )


class PromoteParameters(NullIsAbsent):
    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(default=None, ge=0, description="default: the newest in the repository")


class RollBackParameters(NullIsAbsent):
    model_config = ConfigDict(extra="forbid")


class PromoteRequest(NullIsAbsent):
    model_config = ConfigDict(extra="forbid")

    parameters: PromoteParameters = PromoteParameters()


class RollBackRequest(NullIsAbsent):
    model_config = ConfigDict(extra="forbid")

    parameters: RollBackParameters = RollBackParameters()


class Promoted(BaseModel):
    """The version that is now served to requests that name none, and the one before."""

    name: str
    version: str
    before: str | None


class ChangeRequest(NullIsAbsent):
    """Forbids unknown members. Otherwise an unload with a misspelt version would unload every version."""

    model_config = ConfigDict(extra="forbid")

    parameters: ChangeParameters = ChangeParameters()


@router.post(
    "/index", summary="List the versions in the repository", responses=ERRORS, openapi_extra=taking(IndexRequest)
)
async def index(request: Request, container: ContainerHere) -> list[IndexEntry]:
    """List every version in the repository and its state."""
    only_ready = (await read_message(request, IndexRequest)).ready
    return [
        IndexEntry(name=each.name, version=str(each.version), state=each.state, reason=each.reason)
        for each in await container.repository.index()
        if each.state == State.READY or not only_ready
    ]


@router.post("/models/{model}/load", summary="Load a model", responses=ERRORS, openapi_extra=taking(ChangeRequest))
async def load(request: Request, container: ContainerHere, model: str) -> None:
    """Load a model's newest version in place of the older one, or load one version by number beside the others.

    The response is sent when it is loaded. If loading fails, nothing changes and the error says why.
    """
    await change(container.repository.load(model, (await read_message(request, ChangeRequest)).parameters.version))


@router.post("/models/{model}/unload", summary="Unload a model", responses=ERRORS, openapi_extra=taking(ChangeRequest))
async def unload(request: Request, container: ContainerHere, model: str) -> None:
    """Unload a model or one version of it, and finish its requests."""
    await change(container.repository.unload(model, (await read_message(request, ChangeRequest)).parameters.version))


@router.post(
    "/models/{model}/promote", summary="Promote a version", responses=ERRORS, openapi_extra=taking(PromoteRequest)
)
async def promote_version(request: Request, container: ContainerHere, model: str) -> Promoted:
    """Serve one version from now on, also after restarts and when newer versions are published.

    If it cannot be loaded, nothing changes and the error says why.
    """
    version = (await read_message(request, PromoteRequest)).parameters.version
    return await change(move(container, model, partial(promote, version=version)))


@router.post(
    "/models/{model}/rollback", summary="Roll a model back", responses=ERRORS, openapi_extra=taking(RollBackRequest)
)
async def roll_back_version(request: Request, container: ContainerHere, model: str) -> Promoted:
    """Promote the version that was promoted before, or the previous version in the repository."""
    await read_message(request, RollBackRequest)
    return await change(move(container, model, partial(roll_back, beside=container.repository.beside.get(model, ()))))


async def move(container: Container, model: str, how: Change) -> Promoted:
    version, before = await container.repository.change_promotions(model, how)
    return Promoted(name=model, version=str(version), before=None if before is None else str(before))


async def read_message(request: Request, model: type[Content]) -> Content:
    """Read the body, which may be missing. Triton's client sends JSON without the content type that FastAPI needs."""
    body = await read_instruction(request)
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        problem = error.errors()[0]
        inner = "parameters" in problem["loc"][:-1]
        known = type(model.model_fields["parameters"].default) if inner else model
        raise ServiceError(Code.BAD_REQUEST, f"the body cannot be read: {describe_problem(problem, known)}") from error


async def read_instruction(request: Request) -> bytes:
    """Check a request's management key and return its body.

    Raises ServiceError.
    """
    container = container_of(request)
    container.management_keys.check(request.headers)
    started = context_of(request).timing.started
    return await read_body(read_short(request), deadline_of(started, container.settings.request_timeout, None))


async def read_short(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise ServiceError(Code.BODY_TOO_LARGE, f"the body is larger than {MAX_BODY:,} bytes, the limit")
    return body


async def change(doing: Awaitable[Result]) -> Result:
    try:
        return await doing
    except LoadError as error:
        raise ServiceError(Code.BAD_REQUEST, str(error)) from error
