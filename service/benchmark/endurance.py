"""Endurance tests of version changes, drains and memory."""

import argparse
import asyncio
import signal
import urllib.request
from collections import Counter

import uvloop

from models import SHIPPED
from models.model_repository import find_version
from service.benchmark.generator import LOST, Result, closed_loop, named, open_loop, post, run
from service.benchmark.images import IMAGES
from service.benchmark.servers import Ours


def swaps(chosen: argparse.Namespace) -> dict[str, object]:
    """Replace the served version repeatedly under load; every request must get a response."""
    server = Ours(chosen.output / "ours.log", "--engine", "native", "--routing", "branch", "--max-batch-size", "8")
    name = find_version(SHIPPED, None, None).parent.name

    async def swap() -> tuple[Result, int]:
        loading = asyncio.create_task(asyncio.to_thread(swap_all))
        result = Result(0)
        while not loading.done():
            part = await open_loop(server.port, [post("/classify", *IMAGES["PNG 32x32"])], 150, 2)
            result.outcomes += part.outcomes
            result.seconds += part.seconds
        return result, loading.result()

    def swap_all() -> int:
        done = 0
        for _ in range(chosen.swaps):
            url = f"http://127.0.0.1:{server.port}/v2/repository/models/{name}/load"
            with urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=60) as response:
                done += response.status == 200
        return done

    try:
        result, done = uvloop.run(swap())
    finally:
        server.end()
    return accounted(result, swaps=done, p99_ms=result.percentile(99))


def drains(chosen: argparse.Namespace) -> dict[str, object]:
    """Stop the server repeatedly under load; admitted requests must get a response, later ones a refusal."""
    total, exits = Result(0), Counter[int]()
    for _ in range(chosen.drains):
        server = Ours(
            *(chosen.output / "ours.log", "--engine", "native", "--routing", "branch"),
            *("--max-batch-size", "4", "--drain-pause", "0.5"),
        )

        async def drain(server: Ours = server) -> Result:
            asyncio.get_running_loop().call_later(0.5, server.process.send_signal, signal.SIGTERM)
            return await open_loop(server.port, [post("/classify", *IMAGES["PNG 32x32"])], 150, 1.5, most=32)

        try:
            total.outcomes += uvloop.run(drain()).outcomes
            exits[server.process.wait(60)] += 1
        finally:
            server.end()
    return accounted(total, drains=chosen.drains, exit_codes={str(code): count for code, count in exits.items()})


def memory(chosen: argparse.Namespace) -> dict[str, object]:
    """Return the memory of the process after a tenth of the requests and after all of them."""
    server = Ours(chosen.output / "ours.log")
    requests = [post(f"/classify?execute_threshold={step / 8}", *IMAGES["PNG 32x32"]) for step in range(9)]
    try:
        first, _ = run(closed_loop(server.port, requests, 32, 3600, chosen.requests // 10))
        begin = server.resident()
        rest, _ = run(closed_loop(server.port, requests, 32, 3600, chosen.requests - chosen.requests // 10))
        end = server.resident()
    finally:
        server.end()
    first.outcomes += rest.outcomes
    return accounted(first, resident_mib_after_a_tenth=begin, resident_mib_after_all=end)


def accounted(result: Result, **more: object) -> dict[str, object]:
    """Return the number of requests, their statuses and ``more``."""
    return {"requests": len(result.outcomes), "statuses": named(result.statuses), "lost": result.statuses[LOST], **more}
