"""Compare the service with other model servers."""

import argparse
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import onnx

from models import SHIPPED
from models.architectures import find_architecture
from models.checkpoint import read_checkpoint
from models.engines.folding import fold
from models.engines.onnx.graph import build_graph
from models.model_repository import find_version
from service.benchmark.generator import send
from service.benchmark.images import IMAGES, form
from service.benchmark.servers import Ours, Server, free_port, peers
from service.benchmark.speed import NETWORK


def peers_side_by_side(chosen: argparse.Namespace) -> dict[str, object]:
    """Measure each server with 64 requests in flight. The peers serve the dense network of the same size."""
    report: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = read_checkpoint(find_version(SHIPPED, NETWORK, None))
        spec = checkpoint.config.input
        network = find_architecture("cifar10_resnet_38").build(len(checkpoint.config.labels)).eval()
        onnx.save(build_graph(fold(network), spec.height, spec.width, "mask"), Path(folder) / "dense.onnx")
        (Path(folder) / "input.json").write_text(spec.model_dump_json())
        for workers in ("1", "2"):
            ours = Ours(chosen.output / "ours.log", "--workers", workers, "--default-model", NETWORK)
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
    for name in IMAGES:
        request = form(name)
        send(request, port, 16, seconds=2)
        one = send(request, port, 1, seconds=seconds / 2)
        many = send(request, port, 64, seconds=seconds)
        report[name] = {
            "p50_ms_1": one.percentile(50),
            "requests_per_second": many.goodput,
            "p50_ms_64": many.percentile(50),
            "p99_ms_64": many.percentile(99),
            "statuses": many.counts,
            "generator_share_of_a_core": many.generator_share,
        }
    return report


def wait_listening(server: Server, port: int, seconds: float = 90) -> None:
    """Wait until an image is classified, since the peers have different probes."""
    end = time.monotonic() + seconds
    request = form("PNG 32x32")
    while time.monotonic() < end and server.process.poll() is None:
        with suppress(RuntimeError):
            if "200" in send(request, port, 1, requests=1).counts:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start: {server.log.read_text()[-400:]}")
