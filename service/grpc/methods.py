"""The methods of the Open Inference Protocol over gRPC, one function for each."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from pydantic import ValidationError

from service.container import Container
from service.errors import Code, ServiceError, describe_problem
from service.grpc.messages import check_outline, members_of, message_class, parameters_of, read_message
from service.http.oip import Call, bad, call_of, output_tensors
from service.http.request_context import RequestContext
from service.http.routes import management, v2
from service.inference.result import ImageResult
from service.inference.route import RouteChoice
from service.repository.loaded_model import LoadedModel
from service.repository.repository import State


@dataclass(frozen=True)
class Invocation:
    """One request: its message, its headers, its deadline in seconds of perf_counter(), its context."""

    container: Container
    message: bytes
    headers: Mapping[str, str]
    deadline: float
    context: RequestContext


Method = Callable[[Invocation], Awaitable[Any]]


async def server_live(call: Invocation) -> Any:
    return message_class("ServerLiveResponse")(live=not call.container.health.not_live())


async def server_ready(call: Invocation) -> Any:
    return message_class("ServerReadyResponse")(ready=not call.container.health.not_ready())


async def model_ready(call: Invocation) -> Any:
    request = read_message("ModelReadyRequest", call.message)
    try:
        await v2.model_ready(call.container, request.name, request.version or None)
    except ServiceError:
        return message_class("ModelReadyResponse")(ready=False)
    return message_class("ModelReadyResponse")(ready=True)


async def server_metadata(_: Invocation) -> Any:
    return message_class("ServerMetadataResponse")(**(await v2.server_metadata()).model_dump())


async def model_metadata(call: Invocation) -> Any:
    request = read_message("ModelMetadataRequest", call.message)
    metadata = await v2.model_metadata(call.container, request.name, request.version or None)
    return message_class("ModelMetadataResponse")(**metadata.model_dump())


async def model_config(call: Invocation) -> Any:
    request = read_message("ModelConfigRequest", call.message)
    config = await v2.model_config(call.container, request.name, request.version or None)
    parameters = {name: {"string_value": json.dumps(value)} for name, value in config.pop("parameters").items()}
    return message_class("ModelConfigResponse")(config={**config, "parameters": parameters})


async def model_infer(call: Invocation) -> Any:
    """Infer as POST /v2/models/{model}/infer does."""
    container, context, timing = call.container, call.context, call.context.timing
    container.inference_keys.check(call.headers)
    container.health.require_accepting()
    size = check_outline(call.message)
    async with container.json_turn.take(size, call.deadline):
        request = await asyncio.to_thread(read_message, "ModelInferRequest", call.message)
    version = v2.number(request.model_version or None)
    with container.lease(v2.plain_name(request.model_name), version, call.headers) as loaded:
        context.model, context.version = loaded.name, str(loaded.version)
        container.admission.refuse_if_saturated(loaded)
        async with container.json_turn.take(size, call.deadline):
            parsed = await asyncio.to_thread(read_call, request, loaded, container.admission.max_images)
        timing.receive = perf_counter() - timing.started
        allowed = call.headers.get("x-degrade", "").lower() != "false"
        route = container.degradation.route(loaded, parsed.parameters, allowed)
        results = await run(call, parsed, loaded, route)
        response = await asyncio.to_thread(respond, request, parsed, results, loaded, route)
        timing.finish()
        container.metrics.observe_request(loaded, timing, context.request_id, results, route)
    context.fields |= {"images": len(results), "skipped": sum(each.skipped for each in results)}
    return response


def read_call(request: Any, loaded: LoadedModel, max_images: int) -> Call:
    members, binary = members_of(request)
    return call_of(members, binary, loaded.shape, max_images, v2.datatypes_of(loaded))


async def run(call: Invocation, parsed: Call, loaded: LoadedModel, route: RouteChoice) -> list[ImageResult]:
    """Return the results of a call's images."""
    timing, deadline = call.context.timing, call.deadline
    if parsed.parameters.timeout is not None:
        deadline = min(deadline, timing.started + parsed.parameters.timeout / 1e6)
    with call.container.admission.admit(len(parsed.payloads), loaded, deadline, timing.started):
        return await call.container.pipeline.run(
            loaded,
            parsed.payloads,
            threshold=route.threshold,
            deadline=deadline,
            timing=timing,
            # gRPC cancels this coroutine when the client cancels or disconnects.
            disconnected=asyncio.get_running_loop().create_future(),
        )


def respond(request: Any, parsed: Call, results: list[ImageResult], loaded: LoadedModel, route: RouteChoice) -> Any:
    """Return the ModelInferResponse, with every tensor as raw bytes."""
    response = message_class("ModelInferResponse")(
        model_name=request.model_name, model_version=str(loaded.version), id=parsed.id
    )
    if route.accuracy_loss is not None:
        response.parameters["degraded"].bool_param = True
        response.parameters["expected_accuracy_loss"].double_param = round(route.accuracy_loss, 4)
    for output, datatype, values, content in output_tensors(parsed, results, loaded.labels):
        response.outputs.add(name=output.name, datatype=datatype, shape=values.shape)
        response.raw_output_contents.append(content)
    return response


async def repository_index(call: Invocation) -> Any:
    call.container.management_keys.check(call.headers)
    only_ready = read_message("RepositoryIndexRequest", call.message).ready
    entries = [
        {"name": each.name, "version": str(each.version), "state": each.state, "reason": each.reason}
        for each in await call.container.repository.index()
        if each.state == State.READY or not only_ready
    ]
    return message_class("RepositoryIndexResponse")(models=entries)


async def load(call: Invocation) -> Any:
    request, version = read_change(call, "RepositoryModelLoadRequest")
    await management.change(call.container.repository.load(request.model_name, version))
    return message_class("RepositoryModelLoadResponse")()


async def unload(call: Invocation) -> Any:
    request, version = read_change(call, "RepositoryModelUnloadRequest")
    await management.change(call.container.repository.unload(request.model_name, version))
    return message_class("RepositoryModelUnloadResponse")()


def read_change(call: Invocation, name: str) -> tuple[Any, int | None]:
    """Return a load's or unload's request and the version in it."""
    call.container.management_keys.check(call.headers)
    if call.container.settings.workers > 1:
        raise ServiceError(Code.METHOD_NOT_ALLOWED, "with several workers, load and unload models over HTTP: /v2")
    if len(call.message) > management.MAX_BODY:
        raise ServiceError(Code.BODY_TOO_LARGE, f"the message is larger than {management.MAX_BODY:,} bytes, the limit")
    request = read_message(name, call.message)
    try:
        parameters = management.ChangeParameters.model_validate(parameters_of(request.parameters, request.parameters))
    except ValidationError as error:
        raise bad(describe_problem(error.errors()[0], management.ChangeParameters)) from error
    return request, parameters.version


METHODS: Mapping[str, Method] = {
    "ServerLive": server_live,
    "ServerReady": server_ready,
    "ModelReady": model_ready,
    "ServerMetadata": server_metadata,
    "ModelMetadata": model_metadata,
    "ModelConfig": model_config,
    "ModelInfer": model_infer,
    "RepositoryIndex": repository_index,
    "RepositoryModelLoad": load,
    "RepositoryModelUnload": unload,
}
