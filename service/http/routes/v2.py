"""The Open Inference Protocol, version 2, over REST."""

import asyncio
from functools import partial
from importlib.metadata import version as package_version
from time import perf_counter
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel

from service.container import Container
from service.errors import Code, ServiceError
from service.http.body import deadline_of, read_body
from service.http.oip import CASCADE_DATATYPES, DATATYPES, InferRequest, read_call, respond
from service.http.request_context import context_of
from service.http.routes import management
from service.http.routes.dependencies import KEYED, ContainerHere, container_of, failing, taking
from service.repository.loaded_cascade import LoadedCascade
from service.repository.loaded_model import LoadedModel

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
router.include_router(management.router)

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository"]

PLAIN = "@image"
"""Suffix of a model's name for clients that need one input and one output, as Triton's image client does. Under it the
model has `image` and `probabilities` only."""

SMALL_ANSWER = 1000
"""Images times classes. A smaller response is written faster than a thread starts."""


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


@router.get("", summary="Server metadata")
@router.get("/", include_in_schema=False)
async def server_metadata() -> ServerMetadata:
    return ServerMetadata(name="skipnet-serve", version=package_version("skipnet-serve"), extensions=EXTENSIONS)


@router.get("/health/live", summary="Server liveness", responses={503: {"model": Alive}})
async def live(container: ContainerHere, response: Response) -> Alive:
    alive = Alive(live=not container.health.not_live())
    response.status_code = 200 if alive.live else 503
    return alive


@router.get("/health/ready", summary="Server readiness", responses={503: {"model": ServerReady}})
async def ready(container: ContainerHere, response: Response) -> ServerReady:
    state = ServerReady(ready=not container.health.not_ready())
    response.status_code = 200 if state.ready else 503
    return state


@router.get("/models/{model}/ready", summary="Model readiness", responses=failing(404, 503))
@router.get("/models/{model}/versions/{version}/ready", summary="Version readiness", responses=failing(404, 503))
async def model_ready(container: ContainerHere, model: str, version: str | None = None) -> ModelReady:
    find(container, model, version)
    container.health.require_accepting()
    return ModelReady(name=model, ready=True)


@router.get("/models/{model}", summary="Model metadata", responses=failing(404, 503))
@router.get("/models/{model}/versions/{version}", summary="Version metadata", responses=failing(404, 503))
async def model_metadata(container: ContainerHere, model: str, version: str | None = None) -> ModelMetadata:
    loaded = find(container, model, version)
    inputs, outputs = tensors(loaded, model.endswith(PLAIN))
    return ModelMetadata(
        name=model,
        versions=[str(each) for each in sorted(container.repository.loaded[loaded.name])],
        platform=f"skipnet_{loaded.engine.name}",
        inputs=inputs,
        outputs=outputs,
    )


@router.get("/models/{model}/config", summary="Model configuration", responses=failing(404, 503))
@router.get("/models/{model}/versions/{version}/config", summary="Version configuration", responses=failing(404, 503))
async def model_config(container: ContainerHere, model: str, version: str | None = None) -> dict[str, Any]:
    """Return Triton's model configuration, with the preprocessing of the input."""
    loaded = find(container, model, version)
    inputs, outputs = tensors(loaded, model.endswith(PLAIN))
    return {
        "name": model,
        "platform": f"skipnet_{loaded.engine.name}",
        "backend": loaded.engine.name,
        "max_batch_size": container.settings.max_batch_size,
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
            "labels": loaded.labels,
            "execute_threshold": loaded.threshold,
            "preprocessing": loaded.input.model_dump(),
        },
    }


@router.post(
    "/models/{model}/infer",
    summary="Infer with a model",
    tags=["inference"],
    dependencies=KEYED,
    responses=failing(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=taking(InferRequest),
)
@router.post(
    "/models/{model}/versions/{version}/infer",
    summary="Infer with one version of a model",
    tags=["inference"],
    dependencies=KEYED,
    responses=failing(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=taking(InferRequest),
)
async def infer(
    request: Request,
    model: str,
    version: str | None = None,
    inference_header_content_length: Annotated[int | None, Header(ge=0)] = None,
    x_request_timeout: Annotated[float | None, Header(gt=0, allow_inf_nan=False)] = None,
    x_degrade: bool = Header(True),
) -> Response:
    """Classify the images of one tensor: `image` FP32 [-1, 3, H, W], or `bytes` BYTES [-1] of encoded images.

    Outputs: `logits`, `probabilities`, `executed` (blocks 1 to B-1), `macs`, and for a cascade `stages` (how many ran
    for the image); by default all of them. Parameters: `execute_threshold`, `compute_budget`, `min_margin` (for a
    cascade), `timeout` (microseconds), `binary_data_output`.
    """
    container, context = container_of(request), context_of(request)
    container.inference_keys.check(request.headers)
    timing = context.timing
    deadline = deadline_of(timing.started, container.settings.request_timeout, x_request_timeout)
    container.health.require_accepting()
    with container.lease(plain_name(model), number(version), request.headers) as loaded:
        context.model, context.version = loaded.name, str(loaded.version)
        container.admission.refuse_if_saturated(loaded)
        body = await read_body(request.body(), deadline)
        read = partial(
            read_call,
            body,
            inference_header_content_length,
            loaded.shape,
            container.admission.max_images,
            datatypes_of(loaded),
        )
        async with container.json_turn.take(inference_header_content_length or len(body), deadline):
            call = await asyncio.to_thread(read)
        timing.receive = perf_counter() - timing.started
        parameters = call.parameters
        route = container.degradation.route(loaded, parameters, x_degrade)
        if parameters.timeout is not None:
            deadline = min(deadline, timing.started + parameters.timeout / 1e6)
        with container.admission.admit(len(call.payloads), loaded, deadline, timing.started):
            results = await container.pipeline.run(
                loaded,
                call.payloads,
                threshold=route.threshold,
                deadline=deadline,
                timing=timing,
                disconnected=request.receive(),
            )
            write = partial(respond, call, results, loaded.labels, model, loaded.version, route)
            small = len(results) * len(loaded.labels) <= SMALL_ANSWER
            body, head = write() if small else await asyncio.to_thread(write)
        timing.finish()
        container.metrics.observe_request(loaded, timing, context.request_id, results, route)
    context.fields |= {"images": len(results), "skipped": sum(each.skipped for each in results)}
    headers = timing.headers()
    if head is not None:
        headers["Inference-Header-Content-Length"] = str(head)
    kind = "application/json" if head is None else "application/octet-stream"
    return Response(body, media_type=kind, headers=headers)


def plain_name(model: str) -> str:
    return model.removesuffix(PLAIN)


def number(version: str | None) -> int | None:
    """Return the version in a path.

    Raises ServiceError model_not_found if it is not a number.
    """
    if version is None:
        return None
    if not (version.isascii() and version.isdecimal() and len(version) < 19):
        raise ServiceError(Code.MODEL_NOT_FOUND, f"versions are numbers, not {version!r}")
    return int(version)


def find(container: Container, model: str, version: str | None) -> LoadedModel:
    return container.repository.resolve(plain_name(model), number(version))


def datatypes_of(loaded: LoadedModel) -> dict[str, str]:
    """Return the names and datatypes of the model's outputs."""
    return CASCADE_DATATYPES if isinstance(loaded, LoadedCascade) else DATATYPES


def tensors(loaded: LoadedModel, plain: bool) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
    """Return the metadata of the model's inputs and outputs."""
    classes, decisions = len(loaded.labels), loaded.blocks - 1
    shapes = {
        "logits": [-1, classes],
        "probabilities": [-1, classes],
        "executed": [-1, decisions],
        "macs": [-1],
        "stages": [-1],
    }
    inputs = [TensorMetadata(name="image", datatype="FP32", shape=[-1, *loaded.shape])]
    if not plain:
        inputs.append(TensorMetadata(name="bytes", datatype="BYTES", shape=[-1]))
    outputs = [
        TensorMetadata(name=name, datatype=datatype, shape=shapes[name])
        for name, datatype in datatypes_of(loaded).items()
        if not plain or name == "probabilities"
    ]
    return inputs, outputs


def triton_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
