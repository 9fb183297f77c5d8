"""Load the service on loopback and write what it did: `make loadtest`, `python -m tests.load --help`.

Server and load share this machine's cores; what the load took of them is reported.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Coroutine
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import uvloop
from PIL import Image

from models.catalogue import find_architecture
from models.checkpoint import find_version, read_checkpoint
from models.engines import load_engine
from models.engines.folding import fold
from models.engines.graph import build_graph
from models.machine import describe_machine
from models.preprocessing import prepare
from service.decoding import Decoder
from service.settings import SHIPPED
from tests.load.generator import LOST, REFUSED, Result, closed_loop, form, open_loop, post
from tests.load.servers import ROOT, Ours, Server, peers
from tests.load.table import draw

PHOTO = ROOT / "tests/photos/cat.jpg"
DEADLINE = 1.0
BYPASS = ("/health/live", "/health/ready", "/metrics", "/models")


def main() -> None:
    options = argparse.ArgumentParser(prog="make loadtest", description=__doc__)
    options.add_argument("--only", default=",".join(PARTS), help="parts to run, separated by commas")
    options.add_argument("--seconds", type=float, default=6, help="of each run")
    options.add_argument("--swaps", type=int, default=100)
    options.add_argument("--drains", type=int, default=50)
    options.add_argument("--requests", type=int, default=200_000, help="of the memory run")
    options.add_argument("--peers", type=Path, default=ROOT / "build/peers", help="environment of the peers")
    options.add_argument("--output", type=Path, default=ROOT / "build/load", help="folder for load.json and table.md")
    chosen = options.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    file = chosen.output / "load.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    report["machine"] = describe_machine()
    for part in chosen.only.split(","):
        busy = os.getloadavg()[0]
        report[part] = PARTS[part](chosen) | {"other_load": busy}
        file.write_text(json.dumps(report, indent=1) + "\n")
        (chosen.output / "table.md").write_text(draw(report))
        print(part, json.dumps(report[part], indent=1), flush=True)


def small() -> bytes:
    """Return the photo at the network's own size, as PNG: next to no decoding."""
    file = BytesIO()
    with Image.open(PHOTO) as photo:
        photo.resize((32, 32)).save(file, "PNG")
    return file.getvalue()


IMAGES = {"PNG 32x32": (small(), "image/png"), "JPEG 451x300": (PHOTO.read_bytes(), "image/jpeg")}


def run(load: Coroutine[Any, Any, Result]) -> tuple[Result, float]:
    """Return a run's result and the share of one core that sending the load took."""
    began, cpu = time.perf_counter(), time.process_time()
    found = uvloop.run(load)
    return found, (time.process_time() - cpu) / (time.perf_counter() - began)


def latency(chosen: argparse.Namespace) -> dict[str, object]:
    """One request at a time: what HTTP, queue and threads add to decoding and engine."""
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
    """Goodput at 1, 2 and 10 times the capacity, and how soon probes and pages answer meanwhile."""
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
    """Load as `open_loop`, and ask what bypasses the queue five times a second over connections of its own."""

    async def probe() -> None:
        turn = 0
        while True:
            start = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {BYPASS[turn % len(BYPASS)]} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
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


def peers_side_by_side(chosen: argparse.Namespace) -> dict[str, object]:
    """Each server with 64 requests under way: ours routed, the peers the dense network of the same size."""
    report: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = read_checkpoint(find_version(SHIPPED, None, None))
        spec = checkpoint.config.input
        network = find_architecture("cifar10_resnet_38").build(len(checkpoint.config.labels)).eval()
        onnx.save(build_graph(fold(network), spec.height, spec.width, "mask"), Path(folder) / "dense.onnx")
        (Path(folder) / "input.json").write_text(spec.model_dump_json())
        for workers in ("1", "2"):
            ours = Ours(chosen.output / "ours.log", "--workers", workers)
            try:
                report[f"SkipNet Serve, workers: {workers}"] = measure(ours.port, chosen.seconds)
            finally:
                ours.end()
        for name, command in peers(chosen.peers / "bin/python", port := free_port()).items():
            try:
                server = Server(command, chosen.output / f"{name}.log", SKIPNET_DENSE=folder)
                try:
                    wait_listening(server, port)
                    report[name] = measure(port, chosen.seconds)
                finally:
                    server.end()
            except (OSError, RuntimeError) as error:
                report[name] = {"problem": str(error)}
    return report


def measure(port: int, seconds: float) -> dict[str, object]:
    report: dict[str, object] = {}
    for name, (image, kind) in IMAGES.items():
        requests = [form("/classify", image, kind)]
        run(closed_loop(port, requests, 16, 2))
        one, _ = run(closed_loop(port, requests, 1, seconds / 2))
        many, _ = run(closed_loop(port, requests, 64, seconds))
        report[name] = {
            "p50_ms_1": one.percentile(50),
            "requests_per_second": many.goodput,
            "p50_ms_64": many.percentile(50),
            "p99_ms_64": many.percentile(99),
            "statuses": named(one.statuses + many.statuses),
        }
    return report


def swaps(chosen: argparse.Namespace) -> dict[str, object]:
    """Replace the served version again and again under load; every request is to be answered."""
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
            with urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=60) as answer:
                done += answer.status == 200
        return done

    try:
        result, done = uvloop.run(swap())
    finally:
        server.end()
    return accounted(result, swaps=done, p99_ms=result.percentile(99))


def drains(chosen: argparse.Namespace) -> dict[str, object]:
    """End the server under load again and again; what it took is to be answered, the rest refused."""
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
    """What the process holds after the first tenth of the requests, and after all of them."""
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
    """Return how many requests there were and what became of them, with ``more``."""
    return {"requests": len(result.outcomes), "statuses": named(result.statuses), "lost": result.statuses[LOST], **more}


def named(statuses: Counter[int]) -> dict[str, int]:
    names = {LOST: "lost", REFUSED: "connection refused"}
    return {names.get(status, str(status)): count for status, count in sorted(statuses.items())}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_listening(server: Server, port: int, seconds: float = 90) -> None:
    """Return once a photo is answered; peers differ in their probes."""
    end = time.monotonic() + seconds
    request = form("/classify", *IMAGES["PNG 32x32"])
    while time.monotonic() < end and server.process.poll() is None:
        if uvloop.run(closed_loop(port, [request], 1, 0.2, 1)).statuses[200]:
            return
        time.sleep(0.2)
    raise RuntimeError(f"it did not start: {server.log.read_text()[-400:]}")


PARTS = {
    "latency": latency,
    "overload": overload,
    "peers": peers_side_by_side,
    "swaps": swaps,
    "drains": drains,
    "memory": memory,
}

if __name__ == "__main__":
    main()
