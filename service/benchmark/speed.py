"""Measure the latency of single requests, and the goodput under overload."""

import argparse
import asyncio
import time
from statistics import median

import numpy as np

from models import SHIPPED
from models.checkpoint import read_checkpoint
from models.engines import load_engine
from models.model_repository import find_version
from models.preprocessing import prepare
from service.benchmark.generator import LOST, Result, closed_loop, named, open_loop, post, run
from service.benchmark.images import IMAGES
from service.benchmark.servers import Ours
from service.inference.decoder import Decoder

DEADLINE = 1.0
BYPASS = ("/health/live", "/health/ready", "/metrics", "/models")


def latency(chosen: argparse.Namespace) -> dict[str, object]:
    """Send one request at a time: return the overhead of HTTP, queue and threads."""
    report: dict[str, object] = {}
    alone = {name: engine_alone(image) for name, (image, _) in IMAGES.items()}
    server = Ours(chosen.output / "ours.log")
    try:
        for name, (image, kind) in IMAGES.items():
            requests = [post("/classify", image, kind)]
            run(closed_loop(server.port, requests, 1, 1))
            one, _ = run(closed_loop(server.port, requests, 1, chosen.seconds))
            full, load = run(closed_loop(server.port, requests, 64, chosen.seconds))
            report[name] = {
                "engine_alone_p50_ms": alone[name][0],
                "engine_alone_p99_ms": alone[name][1],
                "service_p50_ms": one.percentile(50),
                "service_p99_ms": one.percentile(99),
                "overhead_p50_ms": one.percentile(50) - alone[name][0],
                "requests_per_second_1": one.goodput,
                "requests_per_second_64": full.goodput,
                "load_share_of_a_core": load,
            }
    finally:
        server.end()
    return report


def engine_alone(image: bytes) -> tuple[float, float]:
    """Return the median and 99th percentile of milliseconds to decode, prepare and run one image, without a server."""
    checkpoint = read_checkpoint(find_version(SHIPPED, None, None))
    spec, decoder = checkpoint.config.input, Decoder(32_000_000, 512 << 20)
    engine = load_engine(checkpoint, "auto", "cpu", None, "auto")
    threshold, times = np.full(1, checkpoint.config.execute_threshold, np.float32), []
    for _ in range(1500):
        start = time.perf_counter()
        with decoder.decode(image, spec.resize) as pixels:
            ready = prepare(pixels, spec)
        engine.run(ready[None], threshold)
        times.append(time.perf_counter() - start)
    engine.close()
    return float(np.percentile(times[300:], 50)) * 1e3, float(np.percentile(times[300:], 99)) * 1e3


def overload(chosen: argparse.Namespace) -> dict[str, object]:
    """Return the goodput at multiples of the capacity, and the latency of probes meanwhile."""
    report: dict[str, object] = {}
    server = Ours(chosen.output / "ours.log")
    try:
        for name, (image, kind) in IMAGES.items():
            requests = [post("/classify", image, kind, X_Request_Timeout=str(DEADLINE))]
            run(closed_loop(server.port, requests, 64, 1))
            peak, _ = run(closed_loop(server.port, requests, 64, chosen.seconds))
            report[name] = {"capacity": peak.goodput}
            for times in (0.8, 1, 2, 10):
                probes: list[float] = []
                result, load = run(with_probes(server.port, requests, times * peak.goodput, chosen.seconds, probes))
                report[name][f"{times:g}x"] = {  # type: ignore[index]
                    "offered": result.offered,
                    "goodput": result.goodput,
                    "share_of_capacity": result.goodput / peak.goodput,
                    "p50_ms": result.percentile(50),
                    "p99_ms": result.percentile(99),
                    "statuses": named(result.statuses),
                    "lost": result.statuses[LOST],
                    "probe_p50_ms": median(probes) * 1e3,
                    "probe_max_ms": max(probes) * 1e3,
                    "load_share_of_a_core": load,
                }
    finally:
        server.end()
    return report


async def with_probes(port: int, requests: list[bytes], rate: float, seconds: float, probes: list[float]) -> Result:
    """Run `open_loop` and meanwhile request the paths that bypass the queue, five times per second."""

    async def probe() -> None:
        turn = 0
        while True:
            start = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {BYPASS[turn % len(BYPASS)]} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            response = await reader.read()
            assert response.startswith(b"HTTP/1.1 200"), response[:200]
            probes.append(time.perf_counter() - start)
            writer.close()
            turn += 1
            await asyncio.sleep(0.2)

    probing = asyncio.create_task(probe())
    result = await open_loop(port, requests, rate, seconds)
    if probing.done():
        probing.result()
    probing.cancel()
    return result
