"""Parts for the service's tests: a small network with random weights, images, and a server on a real socket."""

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.architectures import find_architecture
from models.checkpoint import Config, read_checkpoint, write_checkpoint, write_config
from models.engines import load_engine
from models.engines.protocol import Engine, Routed
from models.preprocessing import InputSpec, prepare
from service.repository.loaded_model import LoadedModel
from service.server import build
from service.settings import Settings

NAME = "cifar10_rnn_gate_38"
PNG = {"content-type": "image/png"}
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SPEC = InputSpec(height=32, width=32, resize=32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """Return an image of random smooth colours. Every seed has another route."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4 + seed % 5, 4 + seed % 3, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_random(folder: Path, seed: int, name: str = NAME) -> None:
    """Write a checkpoint of random weights with a threshold at which images differ most in the blocks they skip."""
    torch.manual_seed(seed)
    network = find_architecture(name).build(len(LABELS)).eval()
    config = Config(architecture=name, labels=LABELS, input=SPEC, code="random weights for tests")
    write_checkpoint(folder, network, config)
    engine = load_engine(read_checkpoint(folder), "reference", threads=1)
    images = np.stack([prepare(picture(seed), SPEC) for seed in range(12)])

    def spread(threshold: float) -> float:
        return float(engine.run(images, np.full(12, threshold, np.float32)).executed.sum(1).std())

    chances = engine.run(images, np.full(12, 0.5, np.float32)).probability
    threshold = max(np.quantile(chances, np.linspace(0.05, 0.95, 10)).tolist(), key=spread)
    write_config(folder, config.model_copy(update={"execute_threshold": round(threshold, 6)}))


class ControlledEngine:
    """A real engine that a test can hold before a batch, or make fail. It records its batches."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.device = engine.name, engine.device
        self.batches: list[NDArray[np.float32]] = []  # the thresholds of each batch
        self.entered: queue.Queue[int] = queue.Queue()  # the size of each batch, when it starts
        self.open = threading.Event()
        self.open.set()
        self.fails: Callable[[NDArray[np.float32]], bool] = lambda _: False
        self.closed = False

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        self.batches.append(thresholds)
        self.entered.put(len(images))
        assert self.open.wait(20), "a test left the engine held"
        if self.fails(images):
            raise RuntimeError("made to fail")
        return self.engine.run(images, thresholds)

    def close(self) -> None:
        self.closed = True


class Shared:
    """An engine that outlives the versions that run in it."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.name, self.device, self.run = loaded.engine.name, loaded.engine.device, loaded.engine.run

    def close(self) -> None:
        pass


def engine_of(model: LoadedModel) -> ControlledEngine:
    """Return the engine of the fixture ``model``, for a test to hold."""
    assert isinstance(model.engine, ControlledEngine)
    return model.engine


class Running:
    """The service in a thread, on a real socket."""

    def __init__(self, settings: Settings, load: Callable[[Path], LoadedModel] | None = None) -> None:
        self.server = build(settings.model_copy(update={"port": 0}), load)
        self.container = self.server.container
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=20)

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def wait_ready(self) -> "Running":
        """Wait until every model is loaded, not only the default one."""
        until(lambda: self.container.watcher.startup_done, 120)
        until(lambda: self.client.get("/health/ready").status_code == 200, 120)
        return self

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with this name and these labels."""
        return sum(
            sample.value
            for family in self.container.metrics.registry.collect()
            for sample in family.samples
            if sample.name == f"skipnet_{name}" and labels.items() <= sample.labels.items()
        )


class Process:
    """`skipnet serve` in its own process."""

    def __init__(self, log: Path, *options: str, **environment: str) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.cli.main", "serve", "--port", "0", *options],
                stderr=file,
                env=os.environ | environment,
            )

    @property
    def lines(self) -> str:
        return self.log.read_text()

    def url(self) -> str:
        until(lambda: "address=" in self.lines or self.process.poll() is not None, 60)
        found = re.search(r"address=(\S+)", self.lines)
        assert found, self.lines
        return found[1]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until ``condition`` is true. Fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not true in time"
        time.sleep(0.002)


def post(server: Running, data: bytes, query: str = "", headers: dict[str, str] = PNG) -> httpx.Response:
    return server.client.post(f"/classify{query}", content=data, headers=headers)


def error_of(response: httpx.Response) -> str:
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message"}
    assert body["error"]["message"]
    return str(body["error"]["code"])
