"""A replica: the service in a Ray actor, without its own socket."""

import asyncio
import os
from typing import TYPE_CHECKING, Any

import ray
from starlette.types import Message, Scope

from service.settings import Settings
from service.telemetry.logs import configure

if TYPE_CHECKING:
    from service.container import Container

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body of a response."""
STARTING_SECONDS = 0.05
"""Seconds between two checks whether the default model is loaded."""


class Classifier:
    """Serves requests as `skipnet serve` does, with the settings in the environment (SKIPNET_…)."""

    # Serve awaits the constructor. A replica gets no request before that is done.
    async def __init__(self) -> None:  # type: ignore[misc]
        # Engine and decoder take one thread for each CPU that Ray gave this actor, not for each of the machine.
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        os.environ.setdefault("PYTHON_CPU_COUNT", str(max(1, round(cpus))))
        settings = Settings()
        configure(settings.log_level, settings.log_format)
        # Ray's controller and the Ingress import this module too, and need no torch.
        from service.app import create_app

        self.app = create_app(settings)
        self.container: Container = self.app.state.container
        await self.container.start()
        while reasons := self.container.health.not_ready():
            if self.container.watcher.startup_failed:
                raise RuntimeError(f"the service cannot start: {', '.join(reasons)}")
            await asyncio.sleep(STARTING_SECONDS)

    def check_health(self) -> None:
        """Raise RuntimeError if Ray has to replace this replica."""
        if reasons := self.container.health.not_live():
            raise RuntimeError(", ".join(reasons))

    async def answer(self, scope: dict[str, Any], body: bytes) -> Answer:
        """Return the application's response to a request. ``scope`` is an ASGI scope without its state."""
        unread: list[Message] = [{"type": "http.request", "body": body}]
        status, headers, content = 500, list[tuple[bytes, bytes]](), bytearray()

        async def receive() -> Message:
            if not unread:
                # If the client disconnects, Ray cancels this call.
                await asyncio.Event().wait()
            return unread.pop()

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message["headers"])
            else:
                content.extend(message.get("body", b""))

        request: Scope = scope | {"app": self.app, "state": {}}
        await self.app(request, receive, send)
        return status, headers, bytes(content)

    async def __del__(self) -> None:
        """Finish what is queued and end the threads. Serve calls this after the last response."""
        await self.container.stop()
