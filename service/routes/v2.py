"""The Open Inference Protocol, version 2, over REST; and the management of the model repository."""

import asyncio
from collections.abc import Awaitable
from importlib.metadata import version as package_version
from time import perf_counter
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, Field, ValidationError

from service.budget import choose_threshold
from service.core import Core
from service.errors import Code, ServiceError
from service.loading import LoadError, Served
from service.middleware import record_of
from service.oip import DATATYPES, InferRequest, read_call, respond
from service.repository import State
from service.routes.dependencies import CoreHere, core_of

Content = TypeVar("Content", bound=BaseModel)


class OipError(BaseModel):
    """The body of every error under /v2."""

    error: str


def taking(model: type[BaseModel]) -> dict[str, Any]:
    """Return what tells the OpenAPI page of a body that FastAPI does not read."""
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


router = APIRouter(prefix="/v2", tags=["open inference protocol"])

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository"]

# Clients that insist on one input and one output, as Triton's image client does, find the model under its name
# with this behind it, with `image` and `probabilities` only.
PLAIN = "@image"


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Alive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    ready: bool


class ModelReady(ServerReady):
    name: str


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class IndexEntry(BaseModel):
    name: str
    version: str
    state: State
    reason: str = ""


class IndexRequest(BaseModel):
    ready: bool = Field(default=False, description="only what is served")


class ChangeParameters(BaseModel):
    version: int | None = Field(default=None, ge=0, description="default: the newest, or on unload every one")


class ChangeRequest(BaseModel):
    parameters: ChangeParameters = ChangeParameters()


@router.get("")
@router.get("/", include_in_schema=False)
async def server_metadata() -> ServerMetadata:
    return ServerMetadata(name="skipnet-serve", version=package_version("skipnet-serve"), extensions=EXTENSIONS)


@router.get("/health/live", responses={503: {"model": Alive}})
async def live(core: CoreHere, response: Response) -> Alive:
    answer = Alive(live=not core.not_live())
    response.status_code = 200 if answer.live else 503
    return answer


@router.get("/health/ready", responses={503: {"model": ServerReady}})
async def ready(core: CoreHere, response: Response) -> ServerReady:
    answer = ServerReady(ready=not core.not_ready())
    response.status_code = 200 if answer.ready else 503
    return answer


@router.get("/models/{model}/ready", responses=failing(404, 503))
@router.get("/models/{model}/versions/{version}/ready", responses=failing(404, 503))
async def model_ready(core: CoreHere, model: str, version: str | None = None) -> ModelReady:
    find(core, model, version)
    core.accept()
    return ModelReady(name=model, ready=True)


@router.get("/models/{model}", responses=failing(404, 503))
@router.get("/models/{model}/versions/{version}", responses=failing(404, 503))
async def model_metadata(core: CoreHere, model: str, version: str | None = None) -> ModelMetadata:
    served = find(core, model, version)
    inputs, outputs = tensors(served, model.endswith(PLAIN))
    return ModelMetadata(
        name=model,
        versions=[str(each) for each in sorted(core.repository.served[served.name])],
        platform=f"skipnet_{served.engine.name}",
        inputs=inputs,
        outputs=outputs,
    )


@router.get("/models/{model}/config", responses=failing(404, 503))
@router.get("/models/{model}/versions/{version}/config", responses=failing(404, 503))
async def model_config(core: CoreHere, model: str, version: str | None = None) -> dict[str, Any]:
    """What a client needs to prepare its input, in the form of Triton's model configuration."""
    served = find(core, model, version)
    inputs, outputs = tensors(served, model.endswith(PLAIN))
    config = served.checkpoint.config
    return {
        "name": model,
        "platform": f"skipnet_{served.engine.name}",
        "backend": served.engine.name,
        "max_batch_size": core.settings.max_batch_size,
        "input": [
            {
                "name": each.name,
                "data_type": triton_type(each.datatype),
                "format": "FORMAT_NCHW" if each.name == "image" else "FORMAT_NONE",
                "dims": each.shape[1:] or [1],
            }
            for each in inputs
        ],
        "output": [
            {"name": each.name, "data_type": triton_type(each.datatype), "dims": each.shape[1:] or [1]}
            for each in outputs
        ],
        "parameters": {
            "labels": config.labels,
            "execute_threshold": config.execute_threshold,
            "preprocessing": config.input.model_dump(),
        },
    }


@router.post(
    "/models/{model}/infer",
    tags=["inference"],
    responses=failing(400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=taking(InferRequest),
)
@router.post(
    "/models/{model}/versions/{version}/infer",
    tags=["inference"],
    responses=failing(400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=taking(InferRequest),
)
async def infer(
    request: Request,
    model: str,
    version: str | None = None,
    inference_header_content_length: Annotated[int | None, Header(ge=0)] = None,
    x_request_timeout: Annotated[float | None, Header(gt=0, allow_inf_nan=False)] = None,
) -> Response:
    """Classify the images of one tensor: `image` FP32 [-1, 3, H, W], or `bytes` BYTES [-1] of encoded images.

    Outputs: `logits`, `probabilities`, `executed` (blocks 1 to B-1), `macs`; all of them where none is asked for.
    Parameters: `execute_threshold`, `compute_budget`, `timeout` (microseconds), `binary_data_output`.
    """
    core, record = core_of(request), record_of(request)
    core.inference_keys.check(request)
    timing = record.timing
    deadline = core.deadline(timing, x_request_timeout)
    core.accept()
    with core.repository.lease(plain_name(model), number(version)) as served:
        record.model, record.version = served.name, str(served.version)
        with core.admission.admit(1, served, deadline):
            body = await core.read(request.body(), deadline)
            call = await asyncio.to_thread(read_call, body, inference_header_content_length, served.shape)
            del body
            timing.receive = perf_counter() - timing.started
            parameters = call.request.parameters
            if parameters.timeout is not None:
                deadline = min(deadline, timing.started + parameters.timeout / 1e6)
            with core.admission.admit(len(call.payloads) - 1, served, deadline):
                results = await core.run(
                    served,
                    call.payloads,
                    threshold=choose_threshold(
                        served.checkpoint.config, parameters.execute_threshold, parameters.compute_budget
                    ),
                    deadline=deadline,
                    timing=timing,
                    gone=request.receive(),
                )
        answer, head = respond(call, results, served.checkpoint.config.labels, model, served.version)
        timing.finish()
        core.metrics.answered(served, timing, record.request_id)
    record.fields |= {"images": len(results), "skipped": sum(each.skipped for each in results)}
    headers = timing.headers()
    if head is not None:
        headers["Inference-Header-Content-Length"] = str(head)
    kind = "application/json" if head is None else "application/octet-stream"
    return Response(answer, media_type=kind, headers=headers)


@router.post("/repository/index", responses=failing(400, 401), openapi_extra=taking(IndexRequest))
async def index(request: Request, core: CoreHere) -> list[IndexEntry]:
    """Every version in the repository and what became of it."""
    core.management_keys.check(request)
    only_ready = (await sent(request, IndexRequest)).ready
    return [
        IndexEntry(name=each.name, version=str(each.version), state=each.state, reason=each.reason)
        for each in await core.repository.index()
        if each.state == State.READY or not only_ready
    ]


@router.post("/repository/models/{model}/load", responses=failing(400, 401), openapi_extra=taking(ChangeRequest))
async def load(request: Request, core: CoreHere, model: str) -> None:
    """Serve a model's newest version in place of an older one, or one version by number beside the others.

    Answers when it is served. What fails to load changes nothing, and the error says why.
    """
    core.management_keys.check(request)
    await change(core.repository.load(model, (await sent(request, ChangeRequest)).parameters.version))


@router.post("/repository/models/{model}/unload", responses=failing(400, 401), openapi_extra=taking(ChangeRequest))
async def unload(request: Request, core: CoreHere, model: str) -> None:
    """Serve a model no more, or one version of it; requests that have it are finished."""
    core.management_keys.check(request)
    await change(core.repository.unload(model, (await sent(request, ChangeRequest)).parameters.version))


async def sent(request: Request, model: type[Content]) -> Content:
    """Return a body that may be missing. Not FastAPI's own: Triton's client sends JSON without a content type."""
    try:
        return model.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        raise ServiceError(Code.BAD_REQUEST, f"the body can't be read: {error.errors()[0]['msg']}") from error


async def change(doing: Awaitable[object]) -> None:
    try:
        await doing
    except LoadError as error:
        raise ServiceError(Code.BAD_REQUEST, str(error)) from error


def plain_name(model: str) -> str:
    return model.removesuffix(PLAIN)


def number(version: str | None) -> int | None:
    """Return a version from a path; one that is no number names nothing."""
    if version is None:
        return None
    if not (version.isascii() and version.isdecimal() and len(version) < 19):
        raise ServiceError(Code.MODEL_NOT_FOUND, f"versions are numbers, not {version!r}")
    return int(version)


def find(core: Core, model: str, version: str | None) -> Served:
    return core.repository.resolve(plain_name(model), number(version))


def tensors(served: Served, plain: bool) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
    """Return what the model takes and what it answers."""
    classes, decisions = len(served.checkpoint.config.labels), len(served.checkpoint.macs.blocks) - 1
    shapes = {"logits": [-1, classes], "probabilities": [-1, classes], "executed": [-1, decisions], "macs": [-1]}
    inputs = [TensorMetadata(name="image", datatype="FP32", shape=[-1, *served.shape])]
    if not plain:
        inputs.append(TensorMetadata(name="bytes", datatype="BYTES", shape=[-1]))
    outputs = [
        TensorMetadata(name=name, datatype=datatype, shape=shapes[name])
        for name, datatype in DATATYPES.items()
        if not plain or name == "probabilities"
    ]
    return inputs, outputs


def triton_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
