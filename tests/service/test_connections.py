"""With local data, the commands open no connection, look up no name, and write no usage data."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from models import SHIPPED
from models.model_repository import find_version
from tests.models.data.parquet_files import write_parquet
from tests.service.parts import PNG, encoded, picture, until

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here: install strace")

SWITCHES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "HF_UPDATE_DOWNLOAD_COUNTS", "XDG_CACHE_HOME")
ADDRESS = re.compile(r"(?:connect|send\w*)\(.*?(?:sin_addr=inet_addr|inet_pton\(AF_INET6,) ?\(?\"([^\"]+)\"")
IMAGES = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's format with random pixels."""
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    for split in ("train", "test"):
        write_parquet(folder / f"{split}.parquet", pixels, [index % 10 for index in range(IMAGES)])
    return folder


class Traced:
    """A `skipnet` command with its own home folder, whose network calls are recorded."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.home, self.trace, self.output = folder / "home", folder / "trace", folder / "output"
        self.home.mkdir()
        # These variables are set in this process by the import of models. The command must set them itself.
        environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
        # With the filter, only network calls stop the command.
        command = ["strace", "-f", "--seccomp-bpf", "-e", "trace=%network", "-o", str(self.trace)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, sys.executable, "-m", "service.cli.main", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | {"HOME": str(self.home)},
                start_new_session=True,
            )

    def check(self) -> None:
        """Wait for the end of the command. Assert that it succeeded and stayed on this machine."""
        assert self.process.wait(300) == 0, self.output.read_text()
        addresses = set(ADDRESS.findall(self.trace.read_text()))
        assert all(address.startswith("127.") or address == "::1" for address in addresses), addresses
        assert not list(self.home.rglob("Microsoft"))


def test_evaluate(data: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(find_version(SHIPPED, "cifar10_rnn_gate_38", None), tmp_path / "checkpoint")
    Traced(tmp_path, "evaluate", str(checkpoint), "--data", str(data), "--engine", "onnxruntime", "--write").check()


def test_train(data: Path, tmp_path: Path) -> None:
    options = ["--arch", "cifar10_resnet_38", "--dataset", "cifar10", "--recipe", "short", "--epochs", "1"]
    options += ["--batch", "16", "--held-out", "16", "--device", "cpu", "--workers", "0", "--compile", "off"]
    Traced(tmp_path, "train", *options, "--data", str(data), "--output", str(tmp_path / "run")).check()


def test_serve(tmp_path: Path) -> None:
    newest = find_version(SHIPPED, "cifar10_rnn_gate_38", None)
    shutil.copytree(newest, tmp_path / "models" / newest.parent.name / newest.name)
    options = ["--model-repository", str(tmp_path / "models"), "--engine", "onnxruntime", "--drain-pause", "0"]
    serving = Traced(tmp_path, "serve", "--port", "0", *options)
    try:
        until(lambda: "address=" in serving.output.read_text() or serving.process.poll() is not None, 120)
        found = re.search(r"address=(\S+)", serving.output.read_text())
        assert found, serving.output.read_text()
        with httpx.Client(base_url=found[1], timeout=60) as client:
            until(lambda: client.get("/health/ready").status_code == 200, 120)
            assert client.post("/classify", content=encoded(picture(0)), headers=PNG).status_code == 200
        # strace forwards no signal. Its child is the service.
        [service] = Path(f"/proc/{serving.process.pid}/task/{serving.process.pid}/children").read_text().split()
        os.kill(int(service), signal.SIGTERM)
        serving.check()
    finally:
        if serving.process.poll() is None:
            os.killpg(serving.process.pid, signal.SIGKILL)
            serving.process.wait()


def test_an_address_is_found_in_a_trace() -> None:
    line = '16772 connect(7, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.255.255.53")}, 16) = 0'
    other = '1 connect(5, {sa_family=AF_INET6, inet_pton(AF_INET6, "2a00::1", &sin6_addr)}, 28) = 0'
    assert ADDRESS.findall(f"{line}\n{other}") == ["10.255.255.53", "2a00::1"]
