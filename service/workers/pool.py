"""Several worker processes on one address. Each is a complete service with its own engine, queue and limits.

Every worker listens on the public address with its own socket, and the kernel distributes connections among them. It
also listens on a private socket, where the other workers reach it (`service.workers.collective`). If a worker dies, the
others finish the requests they admitted and end too. A restart then begins with consistent versions and counters.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from models.errors import UserError
from models.machine import available_cpus
from service.server import serve
from service.settings import Settings
from service.telemetry.logs import configure

log = logging.getLogger("skipnet.workers")

BACKLOG = 2048


def serve_with_workers(settings: Settings) -> int:
    """Serve with ``settings.workers`` processes until a signal or the end of one. Return the exit code."""
    configure(settings.log_level, settings.log_format)
    public = bind(settings.host, settings.port, settings.workers)
    host, port = public[0].getsockname()[:2]
    # No other user may access this folder, because a private socket reaches a single worker.
    with TemporaryDirectory(prefix="skipnet-") as folder:
        paths = [Path(folder) / f"worker-{number}" for number in range(1, settings.workers + 1)]
        private = [listen(path) for path in paths]
        workers = Workers([start(settings, n, [public[n], private[n]], paths) for n in range(settings.workers)])
        for each in (*public, *private):
            each.close()
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("listening", extra={"fields": {"address": address, "workers": settings.workers}})
        return workers.wait()


def bind(host: str, port: int, count: int) -> list[socket.socket]:
    """Return ``count`` sockets that listen on one address. Port 0 is replaced by a free port.

    Raises UserError.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise UserError("this system cannot distribute connections among several workers; leave --workers out")
    sockets: list[socket.socket] = []
    try:
        [family, *_, address] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # A socket that does not share its port fails if another server uses it. Sockets that share it would not fail.
        with socket.socket(family) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            address = alone.getsockname()
        for _ in range(count):
            sockets.append(socket.socket(family))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sockets[-1].bind(address)
            sockets[-1].listen(BACKLOG)
    except OSError as error:
        raise UserError(f"cannot listen at {host}, port {port}: {error.strerror}") from error
    return sockets


def listen(path: Path) -> socket.socket:
    """Return a Unix socket that listens at ``path``."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener


def start(settings: Settings, number: int, sockets: list[socket.socket], paths: Sequence[Path]) -> BaseProcess:
    """Start worker ``number``, counted from 0, with its share of the CPUs."""
    share = max(1, available_cpus() // settings.workers)
    own = settings.model_copy(
        update={"threads": settings.threads or share, "decode_threads": settings.decode_threads or share}
    )
    # The process is spawned, because CUDA cannot be used in a forked process.
    name = f"worker {number + 1}"
    process = multiprocessing.get_context("spawn").Process(target=work, args=(own, sockets, paths), name=name)
    process.start()
    return process


class Workers:
    """The worker processes. It forwards the parent's signals to them and ends them together."""

    def __init__(self, processes: list[BaseProcess]) -> None:
        self.processes = processes
        self.ending = False
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self.forward)

    def forward(self, sig: int, frame: FrameType | None = None) -> None:  # noqa: ARG002
        """Send a signal to every process that runs."""
        self.ending = True
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, sig)

    def wait(self) -> int:
        """Wait for all processes. Return 0 if a signal ended them and all exited with 0, else 1."""
        running = {process.sentinel: process for process in self.processes}
        failed = False
        while running:
            for sentinel in wait(list(running)):
                process = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                failed |= bool(process.exitcode)
                if not self.ending:
                    failed = True
                    log.error("%s ended with code %s: ending the others", process.name, process.exitcode)
                    self.forward(signal.SIGTERM)
        log.info("stopped")
        return int(failed)


def work(settings: Settings, sockets: list[socket.socket], paths: Sequence[Path]) -> None:
    """Run one worker."""
    # Ctrl-C would reach every process of the terminal's group. The parent forwards it once.
    os.setpgrp()
    threading.Thread(target=end_with_parent, daemon=True).start()
    serve(settings, sockets, paths)


def end_with_parent() -> None:
    """End this process when the parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
