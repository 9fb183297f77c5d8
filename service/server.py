"""The server process: it starts at once, loads models in the background and drains on SIGTERM."""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import uvicorn

from models.errors import needs_extra
from models.remote.files import remote_url
from service.app import create_app
from service.container import Container
from service.http.protocol import BoundedProtocol
from service.repository.loaded_model import LoadedModel
from service.settings import Settings, misspelt
from service.telemetry.logs import configure

if TYPE_CHECKING:
    from service.grpc.server import GrpcServer

log = logging.getLogger("skipnet.server")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ACCEPTS = 32
"""Handles of each listening socket.

Libuv accepts one connection for each handle in an iteration of the event loop. With one handle, new connections would
wait for seconds under load before a request on them is refused.
"""
GRACE_SECONDS = 0.25
"""How long open connections are read at the end. A request that was already sent gets a 503."""


def serve(settings: Settings, sockets: list[socket.socket] | None = None, workers: Sequence[Path] = ()) -> NoReturn:
    """Serve until a signal or an engine failure, then exit: with code 0 after a signal, else 1.

    ``sockets`` are the open sockets of one of several workers. ``workers`` is that of `create_app`.
    """
    configure(settings.log_level, settings.log_format)
    # With Python's default thresholds the garbage collector took a tenth of the time.
    gc.set_threshold(20_000, 20, 20)
    # Decoding threads yield to the event loop after 0.5 ms, not Python's 5 ms.
    sys.setswitchinterval(0.0005)
    open_many_files()
    for variable, option in misspelt(os.environ):
        log.warning("%s: unknown setting, ignored; did you mean %s?", variable, option)
    server = build(settings, workers=workers)
    if not server.container.management_keys.keys and settings.host not in LOOPBACK:
        log.warning(
            "no API keys: every client that reaches %s may load and unload models; set SKIPNET_MANAGEMENT_KEYS or "
            "SKIPNET_API_KEYS",
            settings.host,
        )
    server.run(sockets)
    logging.shutdown()
    # Loads, engines and decoders cannot be interrupted, and a regular exit with torch takes seconds.
    os._exit(server.exit_code)


def open_many_files() -> None:
    """Raise the limit on open files to the hard limit. Each connection needs a file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as error:  # The system may allow less than the hard limit.
        log.warning("the limit on open files cannot be raised: %s", error)


def build(
    settings: Settings, load: Callable[[Path], LoadedModel] | None = None, workers: Sequence[Path] = ()
) -> "Server":
    """Build a server that is not running yet. ``load`` and ``workers`` are those of `create_app`."""
    app = create_app(settings, load, workers)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
    )
    return Server(config, app.state.container, settings.drain_pause, grpc_server(app.state.container))


def grpc_server(container: Container) -> "GrpcServer | None":
    """Return the server for gRPC if the settings have a port for it.

    Raises UserError if the packages are missing.
    """
    if container.settings.grpc_port is None:
        return None
    with needs_extra("grpc", "--grpc-port"):
        from service.grpc.server import GrpcServer
    return GrpcServer(container, container.settings.grpc_port)


class Server(uvicorn.Server):
    """uvicorn's server. It drains before it ends, and it ends when the engine fails."""

    def __init__(
        self, config: uvicorn.Config, container: Container, drain_pause: float, grpc: "GrpcServer | None" = None
    ) -> None:
        super().__init__(config)
        self.grpc = grpc
        self.container = container
        self.drain_pause = drain_pause
        self.drained_at: float | None = None
        self.listeners: list[socket.socket] = []
        self.exit_code = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain. A second signal ends the pause, and a third ends the process."""
        if self.drained_at is None:
            log.info("%s: draining", signal.Signals(sig).name)
            self.container.health.draining = True
            self.drained_at = monotonic() + self.drain_pause
        elif not self.should_exit:
            self.should_exit = True
        else:
            self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self.drained_at is not None and monotonic() >= self.drained_at:
            self.should_exit = True
        elif reasons := self.container.health.not_live():
            log.error("%s: exiting, to be restarted", ", ".join(reasons))
            self.exit_code, self.should_exit = 1, True
        elif self.container.watcher.startup_failed:
            repository = self.container.settings.model_repository
            log.error("no model in %s can be served: exiting", remote_url(repository) or repository)
            self.exit_code, self.should_exit = 1, True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.listeners = sockets or [self.config.bind_socket()]
        await super().startup([each.dup() for each in self.listeners for _ in range(ACCEPTS)])
        if self.grpc is not None and not await self.grpc.start():
            self.exit_code, self.should_exit = 1, True
        if self.started and sockets is None:
            host, port = self.listeners[0].getsockname()[:2]
            log.info(
                "listening",
                extra={"fields": {"address": f"http://{f'[{host}]' if ':' in host else host}:{port}"}},
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Finish admitted requests, refuse later ones with 503, and end."""
        self.container.health.draining = True
        self.container.close()
        for server in self.servers:
            server.close()
        if self.grpc is not None:
            started = monotonic()
            await self.grpc.stop(self.container.settings.drain_timeout)
            rest = self.container.settings.drain_timeout - (monotonic() - started)
            self.config.timeout_graceful_shutdown = max(1, round(rest))
        await self.accept_rest()
        await asyncio.sleep(GRACE_SECONDS)
        await super().shutdown(self.listeners)
        log.info("stopped")

    async def accept_rest(self) -> None:
        """Accept the connections that wait at the sockets. Otherwise the kernel would reset them."""
        for listener in self.listeners:
            listener.setblocking(False)
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    await asyncio.get_running_loop().connect_accepted_socket(self.protocol, connection)
            listener.close()

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol of a new connection, as `uvicorn.Server.startup` does."""
        return BoundedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
