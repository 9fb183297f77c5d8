"""Generate load on loopback: at random times (open loop), or as fast as responses arrive (closed loop)."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any, cast

import numpy as np
import uvloop

LOST = 0
"""The status of a request whose connection closed without a response."""
REFUSED = -1
"""The status of a request whose connection was refused."""


@dataclass(slots=True)
class Outcome:
    """One request with its due time, send time, response time (seconds) and status.

    At most `Client.most` requests are in flight; others are sent late. Latency counts from when a request was sent.
    """

    due: float
    sent: float = 0.0
    done: float = 0.0
    status: int = LOST


@dataclass
class Result:
    """The outcomes of a run; ``seconds`` is its duration until the last response."""

    seconds: float
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def goodput(self) -> float:
        """Responses with status 200 per second."""
        return self.statuses[200] / self.seconds

    @property
    def offered(self) -> float:
        """Requests per second while the load was sent."""
        return len(self.outcomes) / (self.outcomes[-1].due - self.outcomes[0].due)

    def percentile(self, share: float) -> float:
        """Return a percentile (0..100) of the latency of responses with status 200, in milliseconds."""
        times = [outcome.done - outcome.sent for outcome in self.outcomes if outcome.status == 200]
        return float(np.percentile(times, share)) * 1e3 if times else float("nan")


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, idle: "deque[Connection]") -> None:
        self.idle = idle
        self.outcome: Outcome | None = None
        self.finished: Callable[[], None] = lambda: None
        self.open = False
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = cast(asyncio.Transport, transport), True

    def send(self, request: bytes, outcome: Outcome, finished: Callable[[], None]) -> None:
        self.outcome, self.finished, self.received = outcome, finished, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or self.outcome is None:
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
        if len(body) < length:
            return
        self.finish(int(head[9:12]))
        if b"connection: close" in lower:
            self.open = False
            self.transport.close()
        else:
            self.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.open = False
        if self.outcome is not None:
            self.finish(LOST)

    def finish(self, status: int) -> None:
        outcome, self.outcome = self.outcome, None
        assert outcome is not None
        outcome.status, outcome.done = status, perf_counter()
        self.finished()


class Client:
    """A pool of at most ``most`` connections to one port, opened when needed."""

    def __init__(self, port: int, most: int = 512) -> None:
        self.port, self.most = port, most
        self.idle: deque[Connection] = deque()
        self.waiting: deque[tuple[bytes, Outcome]] = deque()
        self.busy = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def send(self, request: bytes, outcome: Outcome) -> None:
        """Send on an idle connection, else a new one, else the first that becomes idle."""
        outcome.sent = perf_counter()
        while self.idle:
            connection = self.idle.popleft()
            if connection.open:
                self.busy += 1
                connection.send(request, outcome, self.freed)
                return
        if self.busy >= self.most:
            self.waiting.append((request, outcome))
            return
        self.busy += 1
        task = asyncio.create_task(self.connect(request, outcome))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def connect(self, request: bytes, outcome: Outcome) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self.idle), "127.0.0.1", self.port)
        except OSError:
            outcome.status, outcome.done = REFUSED, perf_counter()
            self.freed()
        else:
            connection.send(request, outcome, self.freed)

    def freed(self) -> None:
        self.busy -= 1
        if self.waiting:
            asyncio.get_running_loop().call_soon(self.next)

    def next(self) -> None:
        if self.waiting:
            self.send(*self.waiting.popleft())

    async def drain(self, timeout: float) -> None:
        """Wait for all responses; after ``timeout`` seconds missing ones stay LOST."""
        end = perf_counter() + timeout
        while (self.busy or self.waiting) and perf_counter() < end:
            await asyncio.sleep(0.01)
        for connection in self.idle:
            if connection.open:
                connection.transport.close()


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float, most: int = 512) -> Result:
    """Send ``rate`` requests per second at the times of a Poisson process, independently of the responses."""
    client, chance = Client(port, most), random.Random(0)
    result = Result(seconds)
    start = perf_counter()
    due = start + chance.expovariate(rate)
    while due < start + seconds:
        pause = due - perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        # If the generator is late, it sends all due requests at once.
        while due <= perf_counter() and due < start + seconds:
            result.outcomes.append(Outcome(due))
            client.send(requests[len(result.outcomes) % len(requests)], result.outcomes[-1])
            due += chance.expovariate(rate)
        await asyncio.sleep(0)
    await client.drain(40)
    result.seconds = perf_counter() - start
    return result


async def closed_loop(port: int, requests: list[bytes], connections: int, seconds: float, most: int = 10**9) -> Result:
    """Keep ``connections`` requests in flight for ``seconds``, or until ``most`` requests were sent."""
    client = Client(port, connections)
    start = perf_counter()
    result = Result(seconds)

    def another() -> None:
        if perf_counter() - start < seconds and len(result.outcomes) < most:
            result.outcomes.append(Outcome(perf_counter()))
            client.send(requests[len(result.outcomes) % len(requests)], result.outcomes[-1])

    freed = client.freed

    def freed_for_another() -> None:
        freed()
        another()

    client.freed = freed_for_another  # type: ignore[method-assign]
    for _ in range(connections):
        another()
    while perf_counter() - start < seconds and len(result.outcomes) < most:
        await asyncio.sleep(0.01)
    await client.drain(40)
    result.seconds = perf_counter() - start
    return result


def post(path: str, body: bytes, kind: str, **headers: str) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def form(path: str, body: bytes, kind: str, **headers: str) -> bytes:
    """Return a request with the file in the multipart field `image`, as every peer takes it."""
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="image"\r\nContent-Type: {kind}\r\n\r\n'
    return post(path, head.encode() + body + b"\r\n--x--\r\n", "multipart/form-data; boundary=x", **headers)


def run(load: Coroutine[Any, Any, Result]) -> tuple[Result, float]:
    """Return a run's result and the share of one core that sending the load took."""
    began, cpu = perf_counter(), process_time()
    found = uvloop.run(load)
    return found, (process_time() - cpu) / (perf_counter() - began)


def named(statuses: Counter[int]) -> dict[str, int]:
    names = {LOST: "lost", REFUSED: "connection refused"}
    return {names.get(status, str(status)): count for status, count in sorted(statuses.items())}
