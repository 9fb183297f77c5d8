"""What several workers answer as one: probes, metrics, and changes of what is served."""

import asyncio
import fcntl
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from prometheus_client.exposition import choose_encoder
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Code, ServiceError, error_answer, not_ready
from service.http.routes.management import read_instruction
from service.workers.merging import OPENMETRICS, Merged

CHANGE = re.compile(r"/v2/repository/models/[^/]+/(load|unload)")
PROBE = re.compile(r"(/v2)?/health/(live|ready)|/v2/models/[^/]+(/versions/[^/]+)?/ready")
METRICS = "/metrics"

PATIENCE = 2.0
"""Seconds in which a worker has to answer what takes a moment only."""


class Collective:
    """Asks every worker where one alone would not tell the whole; every other request passes.

    Probes fail where any worker's does. Changes go through the workers one by one, until one refuses, and take turns,
    lest workers end up with different versions. Metrics are added up, and refused rather than told in part: a sum
    without one worker would look like a restart.
    """

    def __init__(self, app: ASGIApp, workers: Sequence[Path]) -> None:
        self.app = app
        self.folder = workers[0].parent
        self.workers = [
            httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://worker")
            for path in workers
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What comes by the private socket, which has no port, is another worker's question.
        if scope["type"] != "http" or scope["server"][1] is None:
            await self.app(scope, receive, send)
            return
        path, request = scope["path"], Request(scope, receive)
        try:
            if path == METRICS and request.method == "GET":
                response = await self.metrics(request)
            elif PROBE.fullmatch(path) and request.method == "GET":
                response = first_failure(await asyncio.gather(*(self.ask(w, request, PATIENCE) for w in self.workers)))
            elif CHANGE.fullmatch(path) and request.method == "POST":
                response = await self.change(request)
            else:
                await self.app(scope, receive, send)
                return
        except httpx.TransportError:
            silent = "a worker does not answer: it is starting, or this server is about to end"
            response = error_answer(scope, not_ready(silent))
        except ServiceError as error:
            response = error_answer(scope, error)
        await response(scope, receive, send)

    async def metrics(self, request: Request) -> Response:
        answers = await asyncio.gather(*(self.ask(w, request, PATIENCE, OPENMETRICS) for w in self.workers))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await asyncio.to_thread(lambda: encode(Merged([answer.text for answer in answers])))
        return Response(text, headers={"Content-Type": content_type})

    async def change(self, request: Request) -> Response:
        body = await read_instruction(request)
        async with turn(self.folder):
            return await self.change_all(request, body)

    async def change_all(self, request: Request, body: bytes) -> Response:
        for done, worker in enumerate(self.workers):
            answer = await self.ask(worker, request, None, content=body)
            if answer.is_error and done:
                refused = f"worker {done + 1} of {len(self.workers)} refused, only those before it have changed"
                message = f"{refused}: {answer.json()['error']}"
                return error_answer(request.scope, ServiceError(Code.BAD_REQUEST, message), answer.status_code)
            if answer.is_error:
                break
        return plain(answer)

    async def ask(
        self,
        worker: httpx.AsyncClient,
        request: Request,
        timeout: float | None,
        accept: str | None = None,
        content: bytes = b"",
    ) -> httpx.Response:
        given = Headers(scope=request.scope)
        headers = {name: given[name] for name in ("authorization", "x-api-key", "x-request-id") if name in given}
        if accept:
            headers["accept"] = accept
        url = httpx.URL("http://worker").copy_with(raw_path=request.scope["raw_path"])
        return await worker.request(request.method, url, headers=headers, content=content, timeout=timeout)


@asynccontextmanager
async def turn(folder: Path) -> AsyncIterator[None]:
    """Wait until no other request changes anything in any worker, and keep others waiting meanwhile."""
    with (folder / "changing").open("w") as file:
        while True:
            try:
                # Not in a thread that waits: requests need them while a model loads.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.05)
        yield


def first_failure(answers: Sequence[httpx.Response]) -> Response:
    return plain(next((answer for answer in answers if answer.is_error), answers[0]))


def plain(answer: httpx.Response) -> Response:
    return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))
