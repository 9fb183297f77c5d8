"""Paths of requests behind a proxy that adds a prefix."""

import re
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

CHANGE = re.compile(r"/v2/repository/models/[^/]+/(load|unload|promote|rollback)")
"""The management calls that change the served versions. They concern every process and replica."""


class RootPath:
    """Adds the prefix to each request's scope as ASGI defines it: `path` begins with `root_path`.

    Some proxies remove the prefix before they forward a request, and some do not. Both work, and so do probes without
    the proxy.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["root_path"] = self.root_path
            if not f"{scope['path']}/".startswith(f"{self.root_path}/"):
                scope["path"] = self.root_path + scope["path"]
                scope["raw_path"] = self.root_path.encode() + scope["raw_path"]
        await self.app(scope, receive, send)


def route_path(scope: Scope) -> str:
    """Return a request's path without the prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def without_host(location: str) -> str:
    """Return a URL without scheme and host, which a proxy may have changed."""
    return urlsplit(location)._replace(scheme="", netloc="").geturl()
