"""Forward requests that concern all workers."""

import asyncio
import fcntl
import json
import re
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from prometheus_client.exposition import choose_encoder
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Code, ServiceError, error_response, not_ready
from service.http.paths import CHANGE, route_path
from service.http.routes.management import read_instruction
from service.workers.merging import OPENMETRICS, MergedMetrics

PROBE = re.compile(r"(/v2)?/health/(live|ready)|/v2/models/[^/]+(/versions/[^/]+)?/ready")
METRICS = "/metrics"
ROLL_BACK = b"/rollback"

RESPONSE_TIMEOUT = 2.0
"""Seconds within which a worker must respond to a probe or send its metrics."""


class Collective:
    """Forwards requests that concern all workers to each of them. Other requests pass through.

    A probe fails if it fails in any worker. ``probes`` are the paths of the dialects' probes. A load, unload, promotion
    or rollback goes to one worker after the other until one refuses. Only one of them runs at a time, so that all
    workers serve the same versions. Metrics are merged. If a worker does not respond, the request for metrics fails,
    because a sum without one worker would look like a restart.
    """

    def __init__(self, app: ASGIApp, workers: Sequence[Path], probes: Collection[str] = ()) -> None:
        self.app = app
        self.probes = probes
        self.folder = workers[0].parent
        self.workers = [
            httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://worker")
            for path in workers
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A private socket has no port. The request was forwarded by another worker.
        if scope["type"] != "http" or scope["server"][1] is None:
            await self.app(scope, receive, send)
            return
        path, request = route_path(scope), Request(scope, receive)
        try:
            if path == METRICS and request.method == "GET":
                response = await self.metrics(request)
            elif (PROBE.fullmatch(path) or path in self.probes) and request.method == "GET":
                response = first_failure(
                    await asyncio.gather(*(self.ask(w, request, RESPONSE_TIMEOUT) for w in self.workers))
                )
            elif CHANGE.fullmatch(path) and request.method == "POST":
                response = await self.change(request)
            else:
                await self.app(scope, receive, send)
                return
        except httpx.TransportError:
            silent = "a worker does not respond: it is starting, or this server is about to stop"
            response = error_response(scope, not_ready(silent))
        except ServiceError as error:
            response = error_response(scope, error)
        await response(scope, receive, send)

    async def metrics(self, request: Request) -> Response:
        responses = await asyncio.gather(*(self.ask(w, request, RESPONSE_TIMEOUT, OPENMETRICS) for w in self.workers))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await asyncio.to_thread(lambda: encode(MergedMetrics([response.text for response in responses])))
        return Response(text, headers={"Content-Type": content_type})

    async def change(self, request: Request) -> Response:
        body = await read_instruction(request)
        async with change_lock(self.folder):
            return await self.change_all(request, body)

    async def change_all(self, request: Request, body: bytes) -> Response:
        path: bytes = request.scope["raw_path"]
        for done, worker in enumerate(self.workers):
            response = await self.ask(worker, request, None, content=body, path=path)
            if response.is_error and done:
                refused = f"worker {done + 1} of {len(self.workers)} refused; only those before it have changed"
                message = f"{refused}: {response.json()['error']}"
                return error_response(request.scope, ServiceError(Code.BAD_REQUEST, message), response.status_code)
            if response.is_error:
                break
            if path.endswith(ROLL_BACK):
                # The others follow the first: a second rollback would go one version further.
                path = path.removesuffix(ROLL_BACK) + b"/promote"
                body = json.dumps({"parameters": {"version": int(response.json()["version"])}}).encode()
        return to_response(response)

    async def ask(
        self,
        worker: httpx.AsyncClient,
        request: Request,
        timeout: float | None,
        accept: str | None = None,
        content: bytes = b"",
        path: bytes | None = None,
    ) -> httpx.Response:
        given = Headers(scope=request.scope)
        headers = {name: given[name] for name in ("authorization", "x-api-key", "x-request-id") if name in given}
        if accept:
            headers["accept"] = accept
        url = httpx.URL("http://worker").copy_with(raw_path=path or request.scope["raw_path"])
        return await worker.request(request.method, url, headers=headers, content=content, timeout=timeout)


@asynccontextmanager
async def change_lock(folder: Path) -> AsyncIterator[None]:
    """Hold the workers' common lock of loads and unloads until the `with` block ends."""
    with (folder / "changing").open("w") as file:
        while True:
            try:
                # This does not wait in a thread, because requests need the threads while a model loads.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.05)
        yield


def first_failure(responses: Sequence[httpx.Response]) -> Response:
    return to_response(next((response for response in responses if response.is_error), responses[0]))


def to_response(response: httpx.Response) -> Response:
    return Response(response.content, response.status_code, media_type=response.headers.get("content-type"))
