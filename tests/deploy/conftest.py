import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from models import SHIPPED
from models.cascade.config import Cascade, read_cascade
from models.checkpoint import Checkpoint
from models.model_repository import find_version
from tests.deploy.parts import Live, Prometheus, write_dataset
from tests.service.http.connections.haproxy import HAProxy
from tests.service.parts import Process, encoded, until

TIMEOUT = 240
"""Seconds. The service may share its cores with a training run."""
PHOTOS = Path(__file__).parents[1] / "photos"
PNG = {"content-type": "image/png"}


def photo(seed: int) -> bytes:
    """Return a part of a real photo that depends on the seed."""
    with Image.open(PHOTOS / ("cat.jpg", "rocket.jpg")[seed % 2]) as image:
        side = min(image.size) // 2
        left, top = (seed * 7) % (image.width - side), (seed * 5) % (image.height - side)
        return encoded(image.convert("RGB").crop((left, top, left + side, top + side)))


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """`skipnet serve` with the default cascade and its stages after forty images, scraped before and after them."""
    folder = tmp_path_factory.mktemp("live")
    # Not all shipped models, because loading them takes minutes on busy cores.
    cascade = read_cascade(find_version(SHIPPED, None, None))
    served: list[Cascade | Checkpoint] = [cascade, *cascade.stages]
    for shipped in (each.folder for each in served):
        (folder / "models" / shipped.parent.name).mkdir(parents=True)
        (folder / "models" / shipped.parent.name / shipped.name).symlink_to(shipped)
    gated = cascade.stages[0].name
    # Batches that also run dense would add MACs that no response reports.
    options = ("--routing", "branch", "--max-queue-size", "4", "--max-batch-size", "4", "--dense-sample-interval", "0")
    shadow = ("--shadow", f"{gated}=dense:1")
    serve = Process(folder / "log", "--model-repository", str(folder / "models"), *options, *shadow)
    try:
        with httpx.Client(base_url=serve.url(), timeout=TIMEOUT) as client:
            # The default model is ready first.
            until(
                lambda: all(client.get(f"/v2/models/{each.name}/ready").status_code == 200 for each in served), TIMEOUT
            )
            trainer = start_training(folder)
            proxy = HAProxy(folder / "haproxy.log", client.base_url.port or 0)
            prometheus = Prometheus(
                folder,
                {
                    "skipnet": f"{client.base_url.host}:{client.base_url.port}",
                    "skipnet-proxy": f"127.0.0.1:{proxy.metrics_port}",
                    "skipnet-trainer": metrics_address(folder),
                },
            )
            try:
                until(lambda: prometheus.value('sum(count_over_time(skipnet_macs_total{kind="dense"}[1m]))') >= 2, 60)
                httpx.post(f"{proxy.url}/classify", content=b"no image", headers=PNG, timeout=TIMEOUT)
                yield classified(Live(client, prometheus, proxy=proxy.url), gated)
            finally:
                prometheus.stop()
                proxy.end()
                trainer.kill()
                trainer.wait()
    finally:
        serve.process.kill()
        serve.process.wait()


def start_training(folder: Path) -> subprocess.Popen[bytes]:
    """Start a training run that outlasts every test and logs to ``train.log``."""
    write_dataset(folder / "data", 96)
    options = "--arch cifar10_rnn_gate_38 --dataset cifar10 --recipe budget --stages sp --epochs 1000 --batch 16"
    options += (
        f" --held-out 16 --compile off --priority low --data {folder}/data --output {folder}/run --metrics-port 0"
    )
    command = [sys.executable, "-m", "service.cli.main", "train", *options.split()]
    with (folder / "train.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def metrics_address(folder: Path) -> str:
    """Return the host:port of the training run's metrics, from its log."""
    log = folder / "train.log"
    until(lambda: "/metrics" in log.read_text(), TIMEOUT)
    found = re.search(r"metrics: http://(\S+)/metrics", log.read_text())
    assert found, log.read_text()
    return found[1]


def classified(live: Live, gated: str) -> Live:
    """Classify images, add up the responses, and wait until Prometheus has the same sums.

    Half of the images go to the default cascade, the others to its first stage, the network ``gated``.
    """
    for seed in range(40):
        parameters: dict[str, str | float] = {"model": gated} if seed % 4 < 2 else {"min_margin": seed % 8 // 4}
        if seed % 2:
            # The thresholds range from all blocks to only the first, because images of equal cost would be a weak test.
            parameters["execute_threshold"] = seed % 5 / 4
        response = live.client.post("/classify", params=parameters, content=photo(seed), headers=PNG)
        routing = response.raise_for_status().json()["routing"]
        live.executed += routing["macs"]
        live.dense += routing["dense_macs"]
        live.skipped += routing["skipped"]
        live.layers += routing["layers_skipped"]
    # A scrape may happen while the last response is counted, so wait for every sum.
    sums = {
        'skipnet_macs_total{kind="executed"}': live.executed,
        "skipnet_blocks_skipped_sum": live.skipped,
        "skipnet_layers_skipped_sum": live.layers,
    }
    until(lambda: all(live.prometheus.value(f"sum({metric})") == total for metric, total in sums.items()), 60)
    live.moment = time.time()
    return live


@pytest.fixture(scope="package")
def stressed(live: Live) -> Live:
    """The same after every kind of failure and an overload, and after the rules were evaluated."""

    def send(content: bytes, **headers: str) -> int:
        with httpx.Client(base_url=live.client.base_url, timeout=TIMEOUT) as client:
            return client.post("/classify", content=content, headers=PNG | headers).status_code

    prometheus = live.prometheus
    # This comes first, because it may take minutes and the panels show the last minute.
    until(lambda: prometheus.value("count(skipnet_training_loss)") == 1, TIMEOUT)
    assert send(b"no image") in (400, 415)
    assert send(photo(0)[:200]) == 400
    # It has few bytes to receive and many pixels to decode, so that the deadline passes during decoding.
    image = encoded(Image.new("RGB", (5000, 5000)))
    assert 504 in (send(image, **{"x-request-timeout": str(0.01 * 1.5**step)}) for step in range(16))
    with ThreadPoolExecutor(24) as pool:
        statuses = set(pool.map(send, [image] * 48))
    assert {200, 429} <= statuses
    until(lambda: prometheus.value('sum(rate(skipnet_requests_total{outcome="rejected"}[1m]))') > 0, 60)
    httpx.post(f"{live.proxy}/classify", content=b"no image", headers=PNG, timeout=TIMEOUT)
    until(lambda: prometheus.value("sum(rate(haproxy_backend_http_requests_total[1m]))") > 0, 60)
    until(lambda: prometheus.value("count(job_model_version:skipnet_block_executions:deviation_rate1h)") >= 1, 60)
    return live
