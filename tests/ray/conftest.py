"""A Ray cluster on this machine that serves `deploy/ray` with two replicas."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.ports import free_port
from tests.service.parts import NAME, write_random

ROOT = Path(__file__).parents[2]
RAY = ROOT / "build/ray/bin/ray"
SECONDS = 240
"""Seconds in which a cluster starts, or changes its replicas, on a busy machine."""


VARIABLES = {
    "PYTHONPATH": str(ROOT),
    # By default, the replicas have a lower priority than the other processes.
    "RAY_worker_niceness": "0",
}


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until ``condition``, which queries the dashboard, is true. Fail after SECONDS."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition did not hold in time"
        time.sleep(0.2)


class Cluster:
    """Ray and its dashboard, which deploys applications and describes them."""

    def __init__(self, folder: Path, models: Path) -> None:
        assert RAY.exists(), "run `make ray`"
        self.models = models
        self.http_port, self.dashboard_port = free_port(), free_port()
        self.log, self.temporary = folder / "ray.log", tempfile.mkdtemp(prefix="ray")
        options = {
            "port": 0,
            "node-ip-address": "127.0.0.1",
            "dashboard-port": self.dashboard_port,
            "num-cpus": 4,
            "object-store-memory": 100 << 20,
            # Its sockets are in there, and their paths have to be short.
            "temp-dir": self.temporary,
        }
        command = [str(RAY), "start", "--head", "--block", "--disable-usage-stats"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *(f"--{name}={value}" for name, value in options.items())],
                env=os.environ | VARIABLES,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", timeout=SECONDS)

    def deploy(self) -> None:
        """Deploy serve.yaml with the models of the test, for a small machine."""
        config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
        config["http_options"] |= {"host": "127.0.0.1", "port": self.http_port}
        [application] = config["applications"]
        application["runtime_env"]["env_vars"] |= {
            "SKIPNET_MODEL_REPOSITORY": str(self.models),
            "SKIPNET_DEFAULT_MODEL": NAME,
            "SKIPNET_ENGINE": "native",
            "SKIPNET_MAX_BODY_SIZE": "1000000",
            "PYTHON_CPU_COUNT": "1",
        }
        for deployment in application["deployments"]:
            deployment["ray_actor_options"] = {"num_cpus": 0.1}
        [ingress] = [each for each in application["deployments"] if each["name"] == "Ingress"]
        ingress["num_replicas"] = 1
        eventually(lambda: self.accepts(config))

    def accepts(self, config: dict[str, Any]) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            answer = httpx.put(self.applications, json=config, timeout=SECONDS)
        except httpx.TransportError:
            return False
        assert answer.status_code in (200, 404, 503), answer.text
        return answer.status_code == 200

    @property
    def applications(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}/api/serve/applications/"

    def replicas(self) -> set[int]:
        """Return the process ids of the running replicas, or none while the application changes."""
        application = httpx.get(self.applications, timeout=SECONDS).json()["applications"]["skipnet"]
        assert application["status"] != "DEPLOY_FAILED", application["message"]
        if application["status"] != "RUNNING":
            return set()
        replicas = application["deployments"]["Classifier"]["replicas"]
        return {each["pid"] for each in replicas if each["state"] == "RUNNING"}

    def stop(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SECONDS)
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one network of random weights."""
    folder = tmp_path_factory.mktemp("models")
    write_random(folder / NAME / "1", 1)
    return folder


@pytest.fixture(scope="package")
def cluster(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("ray"), models)
    try:
        started.deploy()
        eventually(lambda: len(started.replicas()) == 2)
        yield started
    finally:
        started.stop()
