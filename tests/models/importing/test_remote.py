"""Networks of a model hub and of a web server are imported over a socket, by the libraries' own clients."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from models.checkpoint import read_config
from models.errors import UserError
from models.importing.remote import is_remote, public_name
from models.importing.source import import_source, load_source
from tests.models.importing.resnets import LABELS, random_network, torchvision_names, write_transformers

COMMIT = "0123456789012345678901234567890123456789"


class Handler(SimpleHTTPRequestHandler):
    """Serve files as a web server and, below /ORG/NAME/resolve/REVISION/, as a model hub does."""

    def translate_path(self, path: str) -> str:
        parts = path.split("/")
        return super().translate_path(f"/{parts[2]}/{parts[5]}" if "/resolve/" in path else path)

    def end_headers(self) -> None:
        self.send_header("ETag", f'"{abs(hash(self.path))}"')
        self.send_header("X-Repo-Commit", COMMIT)
        super().end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        del explain
        self.send_response(code, message)
        self.send_header("X-Error-Code", "RepoNotFound" if "/missing/" in self.path else "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_transformers(folder / "resnet-18", 18)
    torch.save(torchvision_names(dict(random_network(18).state_dict())), folder / "mine.pth")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def url(files: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(files)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("source", ["resnet-18", "resnet-18/", "resnet-18/model.safetensors"])
def test_folder_of_a_web_server(url: str, files: Path, tmp_path: Path, source: str) -> None:
    config = import_source(f"{url}/{source}", tmp_path / "out")
    assert config.labels == LABELS
    assert config.training.imported_from == f"{url}/{source}"
    expected = load_source(str(files / "resnet-18"))
    assert config.input == expected.config.input
    stored = load_source(str(tmp_path / "out")).network
    assert torch.equal(stored.head.weight, expected.network.head.weight)


def test_file_of_a_web_server_is_recorded_without_secrets(url: str, tmp_path: Path) -> None:
    secret = url.replace("http://", "http://user:password@")
    config = import_source(f"{secret}/mine.pth?signature=secret", tmp_path / "out")
    assert (config.architecture, config.training.imported_from) == ("imagenet_resnet_18", f"{url}/mine.pth")
    with pytest.raises(UserError) as refused:
        load_source(f"{secret}/missing.pth?signature=secret")
    assert str(refused.value).startswith(f"{url}/missing.pth cannot be read (")
    assert "password" not in str(refused.value) and "signature" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.pth", r"missing.pth cannot be read \(.*check the address"),
        ("empty", "holds no model.safetensors or pytorch_model.bin: name the weights file"),
    ],
)
def test_missing_network_of_a_web_server_is_named(url: str, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_source(f"{url}/{source}")


@pytest.fixture(scope="module", autouse=True)
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """An import from a hub that cannot be reached. It starts first, because the hub's library retries for 23 s."""
    process = start_import("hf://tests/resnet-18", tmp_path_factory.mktemp("hub") / "out", "http://127.0.0.1:9")
    yield process
    process.kill()
    process.communicate()


def run_import(source: str, output: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """Import in a separate process and return its output."""
    process = start_import(source, output, endpoint)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start_import(source: str, output: Path, endpoint: str) -> subprocess.Popen[str]:
    """Start an import in a separate process, because huggingface_hub reads its address when it is imported."""
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(output.parent / "hub"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "service.cli.main", "import", source, "--output", str(output)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=os.environ | environment, stdout=pipe, stderr=pipe, text=True)


def test_network_of_a_model_hub(url: str, files: Path, tmp_path: Path) -> None:
    done = run_import("hf://tests/resnet-18", tmp_path / "out", url)
    assert done.returncode == 0, done.stderr
    assert "imagenet_resnet_18, 4 classes" in done.stdout
    config = read_config(tmp_path / "out")
    expected = load_source(str(files / "resnet-18"))
    assert (config.labels, config.input) == (LABELS, expected.config.input)
    assert config.training.imported_from == "hf://tests/resnet-18"
    assert torch.equal(load_source(str(tmp_path / "out")).network.head.weight, expected.network.head.weight)


def test_missing_network_of_a_model_hub_is_named(url: str, tmp_path: Path) -> None:
    done = run_import("hf://tests/missing", tmp_path / "out", url)
    assert done.returncode == 1
    assert "hf://tests/missing cannot be read" in done.stderr or "hf://tests/missing holds no" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("source", ["hf://", "hf://a/b/c", "hf://a b/c"])
def test_malformed_name_of_a_hub_is_refused(source: str) -> None:
    with pytest.raises(UserError, match="write hf://ORG/NAME or hf://ORG/NAME@REVISION"):
        load_source(source)


@pytest.mark.parametrize(
    ("source", "library"), [("hf://a/b", "huggingface_hub"), ("http://127.0.0.1:9/a.pth", "obstore.fsspec")]
)
def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, source: str, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"reading {source} needs the extra 'remote'.*install it: "):
        load_source(source)


def test_local_paths_are_not_remote() -> None:
    assert not any(map(is_remote, ("a/b", "C:/a", "./https", "file.pth", "ftp://host/a")))
    assert public_name("https://user:secret@host/a.pth?key=1") == "https://host/a.pth"
    assert public_name("hf://org/name@v1") == "hf://org/name@v1"


def test_an_unreachable_hub_is_not_reported_as_missing_weights(unreachable: subprocess.Popen[str]) -> None:
    _, stderr = unreachable.communicate()
    assert unreachable.returncode == 1
    assert "hf://tests/resnet-18 cannot be read" in stderr
