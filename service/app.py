"""The ASGI application: container, routes and middleware."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from service.container import Container
from service.errors import Code, ServiceError, error_response, invalid
from service.http.middleware import Access, BodyLimit, Direct
from service.http.paths import RootPath
from service.http.routes import classify, health, metrics, models, page, v2
from service.http.routes.dialects import routes_of
from service.repository.loaded_model import LoadedModel
from service.settings import Settings

DESCRIPTION = """Image classification whose cost depends on the image: a SkipNet skips the blocks that an image
does not need. Each response says which blocks ran.

Each response has the header `X-Request-ID`, which is the request's if that is short and plain. Responses to
`POST /classify` also have times in milliseconds (`Server-Timing`, `X-Receive-Time`, `X-Decode-Time`, `X-Queue-Time`,
`X-Inference-Time`, `X-Total-Time`) and the number of images in the batch (`X-Batch-Size`). The request header
`X-Request-Timeout` sets a deadline in seconds."""


def create_app(
    settings: Settings | None = None,
    load: Callable[[Path], LoadedModel] | None = None,
    workers: Sequence[Path] = (),
) -> FastAPI:
    """Build the application. Its container is at `app.state.container`.

    ``load`` reads a version's folder. By default it is the container's function. ``workers`` are the private sockets of
    all worker processes, if there are several.
    """
    container = Container(settings or Settings(), load)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await container.start()
        yield
        await container.stop()

    middleware = [Middleware(each, container=container) for each in (Access, BodyLimit)]
    if container.settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=container.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
        middleware.insert(1, cors)
    if container.settings.root_path:
        middleware.insert(0, Middleware(RootPath, root_path=container.settings.root_path))
    if workers:
        from service.workers.collective import Collective

        probes = [probe for module in routes_of(container.settings.dialects) for probe in module.PROBES]
        middleware.append(Middleware(Collective, workers=workers, probes=probes))
    middleware.append(Middleware(Direct, endpoints={"/classify": classify.classify}))
    # FastAPI's own documentation page loads its scripts from the internet.
    app = FastAPIOffline(
        redoc_url=None,
        title="SkipNet Serve",
        version=version("skipnet-serve"),
        description=DESCRIPTION,
        # `service/telemetry/tracing.py` makes the spans. FastAPI's check for them takes as long as decoding an image.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=lifespan,
        middleware=middleware,
        exception_handlers={
            ServiceError: service_error,
            RequestValidationError: invalid_parameter,
            HTTPException: http_error,
        },
    )
    app.state.container = container
    for module in (classify, health, models, metrics, page, v2):
        app.include_router(module.router)
    for dialect in routes_of(container.settings.dialects):
        app.include_router(dialect.router)
    return app


async def service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(request.scope, error)


async def invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await service_error(request, invalid(error.errors()))


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}.get(error.status_code, Code.BAD_REQUEST)
    headers = MutableHeaders(error.headers or {})
    if allowed := headers.get("allow"):
        headers["allow"] = allowed.replace("GET", "GET, HEAD")  # see `Access`
    message = f"{error.detail}: send {headers['allow']}" if allowed else str(error.detail)
    return error_response(request.scope, ServiceError(code, message, headers), error.status_code)
