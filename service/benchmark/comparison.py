"""Compare the service with other model servers."""

import argparse
import socket
import tempfile
import time
from pathlib import Path

import onnx
import uvloop

from models import SHIPPED
from models.architectures import find_architecture
from models.checkpoint import read_checkpoint
from models.engines.folding import fold
from models.engines.onnx.graph import build_graph
from models.model_repository import find_version
from service.benchmark.generator import closed_loop, form, named, run
from service.benchmark.images import IMAGES
from service.benchmark.servers import Ours, Server, peers


def peers_side_by_side(chosen: argparse.Namespace) -> dict[str, object]:
    """Measure each server with 64 requests in flight; the peers serve the dense network of the same size."""
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_listening(server: Server, port: int, seconds: float = 90) -> None:
    """Wait until an image is classified, since the peers have different probes."""
    end = time.monotonic() + seconds
    request = form("/classify", *IMAGES["PNG 32x32"])
    while time.monotonic() < end and server.process.poll() is None:
        if uvloop.run(closed_loop(port, [request], 1, 0.2, 1)).statuses[200]:
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start: {server.log.read_text()[-400:]}")
