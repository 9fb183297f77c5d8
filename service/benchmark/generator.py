"""Generate load with h2load, which is written in C and takes a fraction of the processor time of a client in Python."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Request:
    """The request of a run: ``body`` to ``path``, or to each of several paths in turn."""

    paths: tuple[str, ...]
    body: bytes
    content_type: str
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """The requests of a run that got a response: statuses [N], start times and durations in seconds [N].

    ``lost`` is the number of requests without a response, or None if it is not known. ``cpu`` is the processor time of
    the generator in seconds.
    """

    statuses: NDArray[np.int64]
    began: NDArray[np.float64]
    took: NDArray[np.float64]
    lost: int | None
    cpu: float

    @property
    def counts(self) -> dict[str, int]:
        """The number of requests with each status."""
        return {str(status): count for status, count in sorted(Counter(self.statuses.tolist()).items())}

    @property
    def seconds(self) -> float:
        """Seconds from the first request to the last response."""
        return float((self.began + self.took).max() - self.began.min())

    @property
    def goodput(self) -> float:
        """Responses with status 200 per second."""
        return float((self.statuses == 200).sum() / self.seconds)

    @property
    def offered(self) -> float:
        """Requests per second that got a response."""
        return len(self.statuses) / self.seconds

    @property
    def generator_share(self) -> float:
        """Share of a core that the generator used."""
        return self.cpu / self.seconds

    def percentile(self, share: float) -> float:
        """Return a percentile (0..100) of the time until a response with status 200, in milliseconds."""
        times = self.took[self.statuses == 200]
        return float(np.percentile(times, share)) * 1e3 if len(times) else float("nan")


def send(
    request: Request,
    port: int,
    connections: int,
    *,
    seconds: float | None = None,
    requests: int | None = None,
    rate: float | None = None,
    new_connections: bool = False,
) -> Result:
    """Send ``requests`` in total, or for ``seconds``, on ``connections`` with one request in flight each.

    With a ``rate``, requests per second of all connections, they are sent at fixed times (an open loop, as far as the
    connections suffice), otherwise as fast as responses come. ``new_connections`` opens one for each request.

    Lost requests are counted only for a number of ``requests``, since some are in flight at the end of the ``seconds``.
    Raises RuntimeError if there was no response.
    """
    headers = [f"Content-Type: {request.content_type}", *request.headers]
    if new_connections:
        headers.append("Connection: close")
    with tempfile.TemporaryDirectory() as name:
        body, log = Path(name) / "body", Path(name) / "log"
        body.write_bytes(request.body)
        # h2load refuses to open more connections than there are requests.
        connections = min(connections, requests or connections)
        command = ["h2load", "--h1", f"--clients={connections}", f"--log-file={log}", f"--data={body}"]
        command += [f"--header={header}" for header in headers]
        command += [f"--requests={requests}"] if seconds is None else [f"--duration={round(seconds * 1e3)}ms"]
        command += [] if rate is None else [f"--rps={rate / connections}"]
        command += [f"http://127.0.0.1:{port}{path}" for path in request.paths]
        before = getrusage(RUSAGE_CHILDREN)
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        after = getrusage(RUSAGE_CHILDREN)
        lines = log.read_text().splitlines() if log.exists() else []
    if not lines:
        raise RuntimeError(f"no response from port {port}: {(run.stdout + run.stderr)[-200:]}")
    began, statuses, took = np.asarray([line.split("\t") for line in lines], np.int64).T
    started, done = map(int, re.findall(r"(\d+) (?:started|done)", run.stdout))
    return Result(
        statuses,
        began / 1e6,
        took / 1e6,
        started - done if seconds is None else None,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )
