"""Endurance tests of version changes, drains and memory, behind the proxy."""

import argparse
import signal
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Timer

from models import SHIPPED
from models.model_repository import find_version
from service.benchmark.generator import Result, send
from service.benchmark.images import post
from service.benchmark.servers import Ours, Proxy
from service.benchmark.speed import both

FAST = ("--engine", "native", "--routing", "branch")
"""Options that make loading short."""
RATE = 150.0
"""Requests per second, below the capacity."""


def swaps(chosen: argparse.Namespace) -> dict[str, object]:
    """Replace the served version repeatedly under load. Every request must get a response."""
    name = find_version(SHIPPED, None, None).parent.name
    results: list[Result] = []
    with both(chosen, *FAST, "--max-batch-size", "8") as (server, proxy), ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{server.port}/v2/repository/models/{name}/load"
        loads = [pool.submit(load, url) for _ in range(chosen.swaps)]
        while not results or not loads[-1].done():
            results.append(send(post("PNG 32x32"), proxy.port, 16, requests=300, rate=RATE))
    return accounted(results, swaps=sum(each.result() == 200 for each in loads))


def load(url: str) -> int:
    """Load a version by a management call and return the status."""
    with urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=60) as response:
        status: int = response.status
        return status


def drains(chosen: argparse.Namespace) -> dict[str, object]:
    """Stop the server repeatedly under load. Every request must get a response, 503 once the server has ended."""
    results: list[Result] = []
    exits = Counter[str]()
    for _ in range(chosen.drains):
        server = Ours(chosen.output / "ours.log", *FAST, "--max-batch-size", "4", "--drain-pause", "3")
        proxy = Proxy(chosen.output / "proxy.log", server.port)
        try:
            Timer(0.5, server.process.send_signal, [signal.SIGTERM]).start()
            results.append(send(post("PNG 32x32"), proxy.port, 32, requests=750, rate=RATE))
            exits[str(server.process.wait(60))] += 1
        finally:
            proxy.end()
            server.end()
    return accounted(results, drains=chosen.drains, exit_codes=dict(exits))


def memory(chosen: argparse.Namespace) -> dict[str, object]:
    """Return the memory of the process after a tenth of the requests and after all of them."""
    server = Ours(chosen.output / "ours.log")
    request = post("PNG 32x32", *(f"/classify?execute_threshold={step / 8}" for step in range(9)))
    try:
        first = send(request, server.port, 32, requests=chosen.requests // 10)
        begin = server.resident()
        rest = send(request, server.port, 32, requests=chosen.requests - chosen.requests // 10)
        end = server.resident()
    finally:
        server.end()
    return accounted([first, rest], resident_mib_after_a_tenth=begin, resident_mib_after_all=end)


def accounted(results: Sequence[Result], **more: object) -> dict[str, object]:
    """Return the number of responses, their statuses, the number of lost requests, and ``more``."""
    counts = sum((Counter(each.counts) for each in results), Counter[str]())
    lost = sum(each.lost or 0 for each in results)
    return {"requests": counts.total(), "statuses": dict(counts), "lost": lost, **more}
