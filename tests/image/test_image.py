"""Test the image: small, no compiler, not root, with a service and a trainer that work together."""

import json
import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image as Picture

from tests.image.conftest import Image
from tests.ports import free_port
from tests.service.parts import until

log = logging.getLogger(__name__)
pytestmark = pytest.mark.image

PHOTOS = Path(__file__).parents[1] / "photos"
TIMEOUT = 900
USER = 10001
ARCH = "cifar10_rnn_gate_38"


@pytest.fixture(scope="module")
def models(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new volume, which starts with the contents of /models in the image."""
    container = image.buildah("from", "--pull-never", image.name)
    mounted = Path(image.buildah("mount", container))
    folder = tmp_path_factory.mktemp("volumes") / "models"
    subprocess.run(["cp", "--archive", mounted / "models", folder], check=True)
    image.buildah("umount", container)
    folder.parent.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def service(image: Image, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    port = free_port()
    log = tmp_path_factory.mktemp("service") / "log"
    process = image.start(
        ["skipnet", "serve"], {models: "/models"}, log, SKIPNET_PORT=str(port), SKIPNET_WATCH_INTERVAL="1"
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        until(lambda: ready(client) or process.poll() is not None, TIMEOUT)
        assert process.poll() is None, log.read_text()
        yield client
        os.kill(inside(process.pid), signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def inside(pid: int) -> int:
    """Return the innermost child of a buildah process, which runs in the container."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


def classify(client: httpx.Client, model: str = "") -> dict[str, object]:
    """Classify a photo, by default with the default model, and return the model of the response."""
    parameters = {"model": model} if model else {}
    response = client.post("/classify", params=parameters, files={"image": (PHOTOS / "cat.jpg").read_bytes()})
    classified: dict[str, object] = response.raise_for_status().json()["model"]
    return classified


def serves(client: httpx.Client, model: str) -> bool:
    return client.get(f"/v2/models/{model}/ready").status_code == 200


def test_the_image_is_small_and_has_no_compiler_and_no_root_user(image: Image) -> None:
    config = json.loads(image.buildah("inspect", "--type", "image", image.name))["OCIv1"]["config"]
    assert config["User"] == f"{USER}:{USER}" and config["Entrypoint"] == ["skipnet"]
    container = image.buildah("from", "--pull-never", image.name)
    mounted = Path(image.buildah("mount", container))
    programs = {file.name for folder in ("usr/bin", "opt/skipnet/bin") for file in (mounted / folder).iterdir()}
    assert not programs & {"gcc", "g++", "cc", "c++", "pip", "make"}
    size = int(subprocess.run(["du", "-s", "-B1", mounted], stdout=subprocess.PIPE, check=True).stdout.split()[0])
    log.info("the image takes %.2f GB", size / 1e9)
    assert size < 2e9 or (mounted / "opt/skipnet/lib/python3.11/site-packages/nvidia").exists()
    image.buildah("umount", container)


def test_the_service_runs_from_the_image_as_its_user(service: httpx.Client) -> None:
    assert classify(service)["version"] == 1
    assert service.get("/health/live").status_code == 200


def test_a_version_that_the_trainer_publishes_is_served_without_a_restart(
    image: Image, service: httpx.Client, models: Path, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    runs, data = tmp_path / "runs", tmp_path / "data"
    write_photos(data / "photos")
    runs.mkdir()
    for folder in (runs, data):
        os.chown(folder, USER, USER)
    options = f"--arch {ARCH} --dataset imagefolder --data /data/photos --size 32 --recipe short --stages sp --epochs 1"
    options += " --held-out 16 --batch 32 --compile off --workers 0 --model-repository /models --model mine"
    log = tmp_path / "log"
    trainer = image.start(
        ["skipnet", "train", *options.split()], {models: "/models", runs: "/runs", data: "/data"}, log
    )
    assert trainer.wait(TIMEOUT) == 0, log.read_text()
    until(lambda: serves(service, "mine"), TIMEOUT)
    assert classify(service, "mine")["version"] == 1
    assert service.get("/health/ready").status_code == 200


def write_photos(folder: Path) -> None:
    """Write a data set of two classes, made of parts of two photos."""
    for name in ("cat", "rocket"):
        (folder / "train" / name).mkdir(parents=True)
        with Picture.open(PHOTOS / f"{name}.jpg") as photo:
            for number in range(80):
                left, top = number * 3 % (photo.width - 96), number * 7 % (photo.height - 96)
                photo.crop((left, top, left + 96, top + 96)).save(folder / "train" / name / f"{number}.png")
