"""Test `deploy/ray` on a real Ray cluster: requests, errors, a killed replica."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.ray.conftest import SECONDS, Cluster, eventually
from tests.service.parts import NAME, PNG, Running, encoded, picture, post

pytestmark = pytest.mark.ray
# Decoding takes some milliseconds, so that a replica that dies has requests.
LARGE = encoded(picture(3, 1000, 800), "JPEG")


class Load:
    """Three clients that classify one image after another, and count the responses."""

    def __init__(self, cluster: Cluster) -> None:
        self.answers: list[int] = []
        self.failures: list[str] = []
        self.ending = threading.Event()
        self.url = f"{cluster.client.base_url}/classify"
        self.threads = [threading.Thread(target=self.classify) for _ in range(3)]

    def classify(self) -> None:
        with httpx.Client(timeout=SECONDS) as client:
            while not self.ending.is_set():
                try:
                    answer = client.post(self.url, content=LARGE, headers={"content-type": "image/jpeg"})
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                self.answers.append(answer.status_code)
                if answer.status_code != 200:
                    self.failures.append(answer.text)

    def wait_for(self, count: int) -> None:
        """Wait for ``count`` more responses."""
        enough = len(self.answers) + count
        eventually(lambda: len(self.answers) >= enough)


@contextmanager
def load(cluster: Cluster) -> Iterator[Load]:
    running = Load(cluster)
    for thread in running.threads:
        thread.start()
    try:
        running.wait_for(50)
        yield running
    finally:
        running.ending.set()
        for thread in running.threads:
            thread.join()


def test_a_response_is_that_of_the_service(cluster: Cluster, models: Path) -> None:
    server = Running(Settings(model_repository=models, device="cpu")).wait_ready()
    try:
        for seed in range(3):
            image = encoded(picture(seed))
            ours = post(server, image, "?top_k=3").raise_for_status().json()
            answer = cluster.client.post("/classify?top_k=3", content=image, headers=PNG).raise_for_status()
            assert answer.json()["predictions"] == ours["predictions"]
            assert answer.json()["routing"] == ours["routing"]
            assert answer.headers["server-timing"]
    finally:
        server.stop()
    assert cluster.client.get(f"/v2/models/{NAME}/ready").status_code == 200


def test_requests_that_cannot_be_served_get_the_errors_of_the_service(cluster: Cluster) -> None:
    assert cluster.client.post("/classify", content=b"no image", headers=PNG).status_code == 415
    assert cluster.client.post("/classify", content=bytes(1_000_001), headers=PNG).status_code == 413
    for path in (f"/v2/repository/models/{NAME}/unload", f"/v2/repository/models/{NAME}/load"):
        assert "publish a version" in cluster.client.post(path).json()["error"]
    assert cluster.client.get("/metrics").status_code == 403


def test_a_killed_replica_loses_no_request_and_is_replaced(cluster: Cluster) -> None:
    before = cluster.replicas()
    with load(cluster) as running:
        os.kill(min(before), signal.SIGKILL)
        eventually(lambda: len(cluster.replicas() - {min(before)}) == 2)
        running.wait_for(50)
    assert running.failures == []
