"""Model repositories on S3 and on a hub, in a hub's cache, and behind links as Kubernetes makes them."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import httpx
import pytest
import torch

from models.checkpoint import read_checkpoint
from models.errors import UserError
from models.importing.source import load_source
from models.remote.files import RemoteError, RemoteFile, download, open_remote, remote_url
from models.remote.mirror import Mirror
from service.repository.loaded_model import LoadedModel
from service.settings import Settings
from tests.models.importing.resnets import LABELS, write_transformers
from tests.service.parts import NAME, PNG, Running, encoded, picture, until
from tests.service.repository.servers import S3, hub

IMAGE = encoded(picture(0))


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    server = S3(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.end()


@pytest.fixture
def s3(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bucket.port}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    yield bucket
    bucket.cut = False


class Shared:
    """An engine that outlives the versions that run in it."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.name, self.device, self.run = loaded.engine.name, loaded.engine.device, loaded.engine.run

    def close(self) -> None:
        pass


@pytest.fixture
def serve(loaded: LoadedModel, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start servers that read versions from disk and share one engine."""
    started: list[Running] = []

    def load(version: Path) -> LoadedModel:
        return replace(loaded, checkpoint=read_checkpoint(version), engine=Shared(loaded))

    def begin(location: str | Path, watch_interval: float = 0.05) -> Running:
        settings = Settings(
            model_repository=Path(location), model_cache=tmp_path / "cache", watch_interval=watch_interval
        )
        started.append(Running(settings, load))
        return started[-1].wait_ready()

    yield begin
    for server in started:
        server.stop()


def served_version(server: Running) -> int:
    response = server.client.post("/classify", content=IMAGE, headers=PNG)
    return int(response.json()["model"]["version"])


def labels(server: Running) -> list[str]:
    [entry] = server.client.get("/models").json()["models"]
    return list(entry["served"]["labels"])


def relabelled(version: Path, target: Path, label: str) -> Path:
    """Copy a version with another name of the same length for its class "cat", so that sizes do not change."""
    copytree(version, target, dirs_exist_ok=True)
    config = (version / "config.json").read_text().replace('"cat"', f'"{label}"')
    (target / "config.json").write_text(config)
    for file in target.iterdir():
        os.utime(file, (0, 0))
    return target


class Load:
    """Sends requests without a pause until the `with` block ends. ``statuses`` are those of the responses."""

    def __init__(self, url: str) -> None:
        self.url, self.over = url, threading.Event()
        self.statuses: list[int] = []
        self.thread = threading.Thread(target=self.send)

    def send(self) -> None:
        with httpx.Client(base_url=self.url, timeout=20) as client:
            while not self.over.is_set():
                self.statuses.append(client.post("/classify", content=IMAGE, headers=PNG).status_code)

    def __enter__(self) -> "Load":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(20)


def test_a_bucket_is_served_watched_and_updated_under_load(
    s3: S3, repository: Path, serve: Callable[..., Running]
) -> None:
    s3.put(repository / NAME / "1", f"watched/{NAME}/1")
    server = serve("s3://bucket/watched")
    with Load(server.url) as load:
        until(lambda: len(load.statuses) > 3)
        s3.put(repository / NAME / "1", f"watched/{NAME}/2")
        until(lambda: served_version(server) == 2)
        before = len(load.statuses)
        until(lambda: len(load.statuses) > before + 3)
    assert set(load.statuses) == {200}
    assert server.metric("requests_total", outcome="ok") == server.metric("requests_total")


def test_a_network_in_a_bucket_is_imported(s3: S3, tmp_path: Path) -> None:
    s3.put(write_transformers(tmp_path / "source", 18), "networks/mine")
    expected = load_source(str(tmp_path / "source"))
    for source in ("s3://bucket/networks/mine", "s3://bucket/networks/mine/model.safetensors"):
        found = load_source(source)
        assert found.config.labels == LABELS and found.config.training.imported_from == source
        assert torch.equal(found.network.head.weight, expected.network.head.weight)
    s3.cut = True
    with pytest.raises(UserError, match=r"s3://bucket/networks/mine cannot be read \("):
        load_source("s3://bucket/networks/mine")


def test_a_broken_download_keeps_the_old_version(s3: S3, repository: Path, serve: Callable[..., Running]) -> None:
    s3.put(repository / NAME / "1", f"broken/{NAME}/1")
    server = serve("s3://bucket/broken")
    s3.cut = True
    s3.put(repository / NAME / "1", f"broken/{NAME}/2")
    until(lambda: server.container.repository._stale != "", 60)
    assert f"{NAME}/2: " in server.container.repository._stale
    assert served_version(server) == 1
    assert [each["version"] for each in server.client.get("/models").json()["models"]] == [1]
    s3.cut = False
    until(lambda: served_version(server) == 2)
    assert server.container.repository._stale == ""


def test_a_request_loads_a_new_version_of_the_bucket(s3: S3, repository: Path, serve: Callable[..., Running]) -> None:
    s3.put(repository / NAME / "1", f"loaded/{NAME}/1")
    server = serve("s3://bucket/loaded", watch_interval=0)
    s3.put(repository / NAME / "1", f"loaded/{NAME}/2")
    assert server.client.post(f"/v2/repository/models/{NAME}/load").status_code == 200
    assert served_version(server) == 2


def test_the_cache_is_served_while_the_bucket_cannot_be_reached(
    s3: S3, repository: Path, serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put(repository / NAME / "1", f"cached/{NAME}/1")
    serve("s3://bucket/cached").stop()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert served_version(serve("s3://bucket/cached", watch_interval=0)) == 1


def test_a_mirror_follows_changes_and_removals(s3: S3, repository: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        s3.put(repository / NAME / "1", f"mirrored/{NAME}/{version}")
    mirror = Mirror("s3://bucket/mirrored", tmp_path / "cache")
    mirror.refresh()
    config = mirror.folder / NAME / "1" / "config.json"
    assert config.read_bytes() == (repository / NAME / "1" / "config.json").read_bytes()
    s3.put(relabelled(repository / NAME / "1", tmp_path / "changed", "cow"), f"mirrored/{NAME}/1")
    s3.delete(f"mirrored/{NAME}/2")
    mirror.refresh()
    assert "cow" in json.loads(config.read_text())["labels"]
    assert {folder.name for folder in (mirror.folder / NAME).iterdir()} == {"1"}
    s3.delete(f"mirrored/{NAME}/1")
    with pytest.raises(RemoteError, match="holds no <model>/<version>/"):
        mirror.refresh()
    assert config.is_file()


def test_a_file_damaged_in_the_cache_is_downloaded_again(s3: S3, repository: Path, tmp_path: Path) -> None:
    s3.put(repository / NAME / "1", f"damaged/{NAME}/1")
    Mirror("s3://bucket/damaged", tmp_path).refresh()
    mirror = Mirror("s3://bucket/damaged", tmp_path)
    weights = mirror.folder / NAME / "1" / "model.safetensors"
    weights.write_bytes(b"junk")
    mirror.refresh()
    assert weights.read_bytes() == (repository / NAME / "1" / "model.safetensors").read_bytes()


def test_a_bucket_that_does_not_exist_is_an_error(s3: S3, tmp_path: Path) -> None:  # noqa: ARG001
    with pytest.raises(RemoteError, match=r"s3://nowhere/models cannot be read: .*404"):
        Mirror("s3://nowhere/models", tmp_path).refresh()


def test_a_repository_of_a_hub_is_mirrored(
    repository: Path, tmp_path: Path, serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    copytree(repository, tmp_path / "hub" / "models")
    with hub(tmp_path / "hub") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        server = serve("hf://org/name/models")
        assert served_version(server) == 1
        files = open_remote("hf://org/name").files()
        assert {file.checksum and file.checksum[0] for file in files} == {"sha256", "blob"}
        copytree(repository / NAME / "1", tmp_path / "hub" / "models" / NAME / "2")
        until(lambda: served_version(server) == 2)


def test_a_file_with_another_checksum_or_size_is_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(repository) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        source = open_remote("hf://org/name")
        [weights] = [file for file in source.files() if file.path.endswith(".safetensors")]
        damaged = replace(weights, checksum=("sha256", "0" * 64))
        with pytest.raises(RemoteError, match="is damaged"):
            download(source, damaged, tmp_path / "file")
        for size in (weights.size - 1, weights.size + 1):
            with pytest.raises(RemoteError, match="is incomplete"):
                download(source, replace(weights, size=size), tmp_path / "file")
        # S3 gives such a tag to an object that it encrypts with a key.
        encrypted = RemoteFile(weights.path, weights.size, "tag", ("md5", "0" * 32))
        assert download(source, encrypted, tmp_path / "file") == (weights.checksum or ("", ""))[1]


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("gs://bucket", "gs://bucket"),
        ("hf://org/name@v1/models", "hf://org/name@v1/models"),
        ("/mnt/models", None),
        ("models/s3:", None),
    ],
)
def test_paths_that_are_remote(path: str, url: str | None) -> None:
    assert remote_url(Path(path)) == url


def hub_cache(folder: Path, versions: dict[str, Path], commit: str) -> None:
    """Write a snapshot as the hub's library does: links to files that are named by their content, then the ref."""
    for name, version in versions.items():
        for file in version.iterdir():
            blob = folder / "blobs" / f"{name}-{file.name}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(file.read_bytes())
            os.utime(blob, (0, 0))
            link = folder / "snapshots" / commit / NAME / "1" / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path("../../../..") / "blobs" / blob.name)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)


def test_a_hubs_cache_is_served_and_watched(repository: Path, tmp_path: Path, serve: Callable[..., Running]) -> None:
    folder = tmp_path / "models--org--name"
    hub_cache(folder, {"old": repository / NAME / "1"}, "aaaa")
    server = serve(folder)
    assert "cat" in labels(server)
    hub_cache(folder, {"new": relabelled(repository / NAME / "1", tmp_path / "changed", "cow")}, "bbbb")
    until(lambda: "cow" in labels(server))


def test_links_as_kubernetes_makes_them_are_served_and_watched(
    repository: Path, tmp_path: Path, serve: Callable[..., Running]
) -> None:
    """``..data`` is a link to the folder with the volume's content. An update replaces ``..data`` by one rename."""
    mount = tmp_path / "mnt"
    for date, label in (("..2026_01", "cat"), ("..2026_02", "cow")):
        relabelled(repository / NAME / "1", mount / date / NAME / "1", label)
    (mount / "..data").symlink_to("..2026_01")
    (mount / NAME).symlink_to(f"..data/{NAME}")
    server = serve(mount)
    assert "cat" in labels(server)
    (mount / "..new").symlink_to("..2026_02")
    (mount / "..new").replace(mount / "..data")
    until(lambda: "cow" in labels(server))
    assert "is ignored" not in str(server.container.watcher._reported)


def test_serving_writes_nothing_into_the_repository(
    repository: Path, tmp_path: Path, serve: Callable[..., Running]
) -> None:
    folder = Path(copytree(repository, tmp_path / "models"))

    def state() -> list[tuple[str, int]]:
        return [(str(path), path.stat().st_mtime_ns) for path in sorted([folder, *folder.rglob("*")])]

    before = state()
    server = serve(folder)
    assert served_version(server) == 1
    assert server.client.post(f"/v2/repository/models/{NAME}/load").status_code == 200
    assert state() == before
