"""The process: binds its socket, loads behind it, and on SIGTERM finishes what it admitted."""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import NoReturn

import uvicorn

from service.app import create_app
from service.container import Container
from service.http.protocol import BoundedProtocol
from service.http.refusals import Refusals
from service.repository.loaded_model import LoadedModel
from service.settings import Settings, misspelt
from service.telemetry.logs import configure

log = logging.getLogger("skipnet.server")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ACCEPTS = 32
"""New connections in one turn of the event loop. libuv takes one a turn for each listening handle, and a turn is long
under load: probes, and whoever should get a 429, would wait unheard for seconds."""


def serve(settings: Settings, sockets: list[socket.socket] | None = None, workers: Sequence[Path] = ()) -> NoReturn:
    """Serve until a signal or a broken engine ends it, and the process with it: with code 0 after a signal, else 1.

    ``sockets`` are open already, for one of several workers; ``workers`` is `create_app`'s.
    """
    configure(settings.log_level, settings.log_format)
    # Requests come and go faster than Python's thresholds expect: looking for garbage took a tenth of the time.
    gc.set_threshold(20_000, 20, 20)
    # Threads that decode give way to the event loop sooner than after Python's 5 ms.
    sys.setswitchinterval(0.0005)
    open_many_files()
    for variable, option in misspelt(os.environ):
        log.warning("%s is no option and changes nothing; did you mean %s?", variable, option)
    server = build(settings, workers=workers)
    if not server.container.management_keys.keys and settings.host not in LOOPBACK:
        log.warning(
            "without keys anybody who reaches %s may load and unload models; set SKIPNET_MANAGEMENT_KEYS or "
            "SKIPNET_API_KEYS",
            settings.host,
        )
    server.run(sockets)
    logging.shutdown()
    # Nobody waits for a load, a stuck engine or a decoder any more, which nothing can interrupt; and to take the
    # interpreter apart, torch and all, takes seconds of the time that there is for ending.
    os._exit(server.exit_code)


def open_many_files() -> None:
    """Let the process open as many files, connections among them, as the system lets it ask for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as error:  # Where the system's own bound is lower than what it says.
        log.warning("the process may open few files only: %s", error)


def build(
    settings: Settings, load: Callable[[Path], LoadedModel] | None = None, workers: Sequence[Path] = ()
) -> "Server":
    """Return a server that has yet to run; ``load`` and ``workers`` are `create_app`'s."""
    app = create_app(settings, load, workers)
    refusals = Refusals(app.state.container)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(BoundedProtocol, refuse=refusals.answer),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
    )
    return Server(config, app.state.container, refusals, settings.drain_pause)


class Server(uvicorn.Server):
    """uvicorn's server, with a drain in which it still answers, and an eye on the engine."""

    def __init__(self, config: uvicorn.Config, container: Container, refusals: Refusals, drain_pause: float) -> None:
        super().__init__(config)
        self.container = container
        self.refusals = refusals
        self.drain_pause = drain_pause
        self.drained_at: float | None = None
        self.kept: list[socket.socket] = []
        self.exit_code = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain; a second signal ends the pause, a third ends everything."""
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
            log.error("no model in %s can be served: exiting", self.container.settings.model_repository)
            self.exit_code, self.should_exit = 1, True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            await self.listen_often()
        if self.started and sockets is None:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            log.info(
                "listening",
                extra={"fields": {"address": f"http://{f'[{host}]' if ':' in host else host}:{port}"}},
            )

    def connection(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def listen_often(self) -> None:
        """Put ACCEPTS handles on each socket that is listened at, and keep one that the event loop knows nothing of."""
        loop = asyncio.get_running_loop()
        for listener in [listener for server in self.servers for listener in server.sockets]:
            self.kept.append(another_handle(listener))
            for _ in range(ACCEPTS - 1):
                again = another_handle(listener)
                self.servers.append(await loop.create_server(self.connection, sock=again, backlog=self.config.backlog))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.container.health.draining = True
        # In the same step of the loop as uvicorn closes its sockets: what is admitted now is finished, what
        # comes now is refused.
        self.container.close()
        ending = asyncio.create_task(super().shutdown(sockets))
        await asyncio.sleep(0)
        # Until the kept handles are closed too, connections still come, and would be lost with the sockets.
        for waiting in [waiting for listener in self.kept for waiting in take_all(listener)]:
            _, protocol = await asyncio.get_running_loop().connect_accepted_socket(self.connection, waiting)
            protocol.shutdown()  # type: ignore[attr-defined]
        await ending
        self.refusals.flush()
        log.info("stopped")


def another_handle(listener: socket.socket) -> socket.socket:
    """Return another handle of a socket."""
    return socket.socket(fileno=os.dup(listener.fileno()))


def take_all(listener: socket.socket) -> list[socket.socket]:
    """Return the connections that wait at a socket, and close it: the kernel resets those that are left there."""
    with listener:
        listener.setblocking(False)
        waiting: list[socket.socket] = []
        while True:
            try:
                waiting.append(listener.accept()[0])
            except OSError:  # None waits, or no file is left to open for one.
                return waiting
