"""The target of Ray's proxies: it bounds requests, sends each to a replica, and again to another if that one dies."""

from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from service.errors import Code, ServiceError, error_response, not_ready
from service.http.paths import CHANGE
from service.settings import Settings

ATTEMPTS = 3
"""Replicas that a request is sent to. Classifying twice does no harm."""
PASSED_ON = (
    *("type", "http_version", "method", "scheme", "path", "raw_path"),
    *("query_string", "root_path", "headers", "client", "server"),
)
"""Keys of an ASGI scope that a replica needs."""


class Ingress:
    """Sends requests to ``classifier``, the replicas, and returns their responses."""

    def __init__(self, classifier: DeploymentHandle) -> None:
        self.classifier = classifier
        self.max_body_size = Settings().max_body_size

    async def __call__(self, request: Request) -> Response:
        try:
            return await self.forward(request)
        except ServiceError as error:
            return error_response(request.scope, error)

    async def forward(self, request: Request) -> Response:
        """Return a replica's response.

        Raises ServiceError: forbidden for what concerns all replicas, body_too_large, overloaded, not_ready.
        """
        refuse_elsewhere(request)
        scope = {key: request.scope[key] for key in PASSED_ON if key in request.scope}
        body = await self.read(request)
        for _ in range(ATTEMPTS):
            try:
                status, headers, content = await self.send(scope, body)
            except RayActorError:
                continue
            except BackPressureError as error:
                message = "the service has no capacity for this request now; try again in 1 s"
                raise ServiceError(Code.OVERLOADED, message, {"Retry-After": "1"}) from error
            response = Response(content, status)
            response.raw_headers = headers
            return response
        raise not_ready(f"{ATTEMPTS} replicas failed while they had this request; try again in 1 s")

    async def send(self, scope: dict[str, Any], body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        answer: tuple[int, list[tuple[bytes, bytes]], bytes] = await self.classifier.answer.remote(scope, body)
        return answer

    async def read(self, request: Request) -> bytes:
        """Return the request's body. Raises ServiceError body_too_large."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.max_body_size:
                raise ServiceError(Code.BODY_TOO_LARGE, f"the body has more than {self.max_body_size} bytes")
        return bytes(body)


def refuse_elsewhere(request: Request) -> None:
    """Raise ServiceError forbidden for a request that concerns all replicas."""
    path = request.scope["path"]
    if path == "/metrics":
        raise ServiceError(Code.FORBIDDEN, "these would be the metrics of one replica; see docs/clusters.md")
    if request.method == "POST" and CHANGE.fullmatch(path):
        message = "replicas are not changed one by one: publish a version, or deploy the application again"
        raise ServiceError(Code.FORBIDDEN, message)
