"""Measure the latency of single requests, and the responses under overload, directly and behind the proxy."""

import argparse
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np

from models import SHIPPED
from models.checkpoint import read_checkpoint
from models.engines import load_engine
from models.model_repository import find_version
from models.preprocessing import prepare
from service.benchmark.generator import send
from service.benchmark.images import IMAGES, post
from service.benchmark.servers import Ours, Proxy
from service.inference.decoder import Decoder

BYPASS = ("/health/live", "/health/ready", "/metrics", "/models")
NETWORK = "cifar10_rnn_gate_38"
"""The network whose latency is measured, and compared with peers of the same size."""
CROWD = 400
"""Connections under overload."""
DEADLINE = 1
"""Seconds that a client waits for a response."""
DEGRADED = {"cifar10_cascade": "PNG 32x32", "imagenette_rnn_gate_18": "JPEG 451x300"}
"""Models whose routes are degraded, each with the image that is sent."""


def latency(chosen: argparse.Namespace) -> dict[str, object]:
    """Send one request at a time, and return the overhead of HTTP, queue and threads, and that of the proxy."""
    report: dict[str, object] = {}
    with both(chosen) as (server, proxy):
        for name in IMAGES:
            request, alone = post(name, f"/classify?model={NETWORK}"), engine_alone(IMAGES[name][0])
            send(request, server.port, 1, seconds=1)
            direct = send(request, server.port, 1, seconds=chosen.seconds)
            proxied = send(request, proxy.port, 1, seconds=chosen.seconds)
            report[name] = {
                "engine_alone_p50_ms": alone[0],
                "engine_alone_p99_ms": alone[1],
                "service_p50_ms": direct.percentile(50),
                "service_p99_ms": direct.percentile(99),
                "overhead_p50_ms": direct.percentile(50) - alone[0],
                "proxied_p50_ms": proxied.percentile(50),
                "proxied_p99_ms": proxied.percentile(99),
                "proxy_p50_ms": proxied.percentile(50) - direct.percentile(50),
            }
    return report


def engine_alone(image: bytes) -> tuple[float, float]:
    """Return the median and 99th percentile of milliseconds to decode, prepare and run one image, without a server."""
    checkpoint = read_checkpoint(find_version(SHIPPED, NETWORK, None))
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
    """Return the goodput at multiples of the capacity, directly and behind the proxy, and the latency of probes."""
    report: dict[str, object] = {}
    with both(chosen) as (server, proxy):
        for name in IMAGES:
            request = post(name)
            send(request, server.port, 16, seconds=1)
            peak = send(request, server.port, 16, seconds=chosen.seconds).goodput
            runs: dict[str, object] = {"capacity": peak}
            for way, port in (("direct", server.port), ("proxied", proxy.port)):
                for new in (False, True):
                    for times in chosen.times:
                        key = f"{way}, {'new' if new else 'pooled'} connections, {times:g}x"
                        count, rate = round(times * peak * chosen.seconds), times * peak
                        before = proxy.cpu(), server.cpu()
                        with probing(port) as probes:
                            result = send(request, port, CROWD, requests=count, rate=rate, new_connections=new)
                        after = proxy.cpu(), server.cpu()
                        runs[key] = {
                            "offered": result.offered,
                            "goodput": result.goodput,
                            "share_of_capacity": result.goodput / peak,
                            "p50_ms": result.percentile(50),
                            "p99_ms": result.percentile(99),
                            "statuses": result.counts,
                            "lost": result.lost,
                            "probe_p50_ms": median(probes) * 1e3 if probes else float("nan"),
                            "probe_max_ms": max(probes, default=float("nan")) * 1e3,
                            "generator_share_of_a_core": result.generator_share,
                            "proxy_share_of_a_core": (after[0] - before[0]) / result.seconds,
                            "service_share_of_a_core": (after[1] - before[1]) / result.seconds,
                        }
                        print(name, key, runs[key], flush=True)
            report[name] = runs
    return report


def degrade(chosen: argparse.Namespace) -> dict[str, object]:
    """Return the responses at 1.5 times the capacity of the usual routes, without and with degraded routes."""
    report: dict[str, object] = {}
    for model, name in DEGRADED.items():
        request = post(name, f"/classify?model={model}", headers=(f"X-Request-Timeout: {DEADLINE}",))
        rate = 0.0
        for mode, options in (("usual routes", ()), ("degraded routes", ("--degrade-to", "0.5"))):
            server = Ours(chosen.output / "ours.log", *options)
            try:
                if not rate:
                    send(request, server.port, 64, seconds=1)
                    peak = send(request, server.port, 64, seconds=chosen.seconds).goodput
                    rate = 1.5 * peak
                result = send(request, server.port, CROWD, requests=round(rate * chosen.seconds), rate=rate)
                degraded, lost = (server.metric(f"degraded_{each}_total") for each in ("images", "accuracy_loss"))
            finally:
                server.end()
            report[f"{model}, {mode}"] = {
                "capacity": peak,
                "offered": result.offered,
                "goodput": result.goodput,
                "p99_ms": result.percentile(99),
                "statuses": result.counts,
                "degraded_images": degraded,
                "accuracy_given_up": lost / degraded if degraded else 0.0,
            }
    return report


@contextmanager
def both(chosen: argparse.Namespace, *options: str) -> Iterator[tuple[Ours, Proxy]]:
    """Run the service and the proxy in front of it."""
    server = Ours(chosen.output / "ours.log", *options)
    try:
        proxy = Proxy(chosen.output / "proxy.log", server.port)
        try:
            yield server, proxy
        finally:
            proxy.end()
    finally:
        server.end()


@contextmanager
def probing(port: int) -> Iterator[list[float]]:
    """Request the paths that bypass the queue over new connections, and record the seconds of each."""
    probes: list[float] = []
    ended = threading.Event()

    def probe() -> None:
        turn = 0
        while not ended.wait(0.2):
            start = time.perf_counter()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{BYPASS[turn % len(BYPASS)]}", timeout=30) as response:
                response.read()
            probes.append(time.perf_counter() - start)
            turn += 1

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield probes
    finally:
        ended.set()
        thread.join()
