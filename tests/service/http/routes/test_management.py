"""Loading and unloading over a real socket by Triton's client, and watching for new versions."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import httpx
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from service.repository.folder import Beside, Files, Wanted, wanted_files
from service.repository.loaded_model import LoadedModel
from service.settings import Settings
from tests.service.parts import NAME, PNG, Running, encoded, picture, until


def served_version(server: Running) -> int:
    classified = server.client.post("/classify", content=encoded(picture(0)), headers=PNG)
    return int(classified.json()["model"]["version"])


def test_load_and_unload(shelf: Callable[..., Running]) -> None:
    server = shelf()
    folder = server.container.settings.model_repository
    copytree(folder / NAME / "1", folder / NAME / "2")
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        states = {each["version"]: each["state"] for each in client.get_model_repository_index()}
        assert states == {"1": "READY", "2": "UNAVAILABLE"}
        client.load_model(NAME)
        assert client.is_model_ready(NAME, "2")
        assert not client.is_model_ready(NAME, "1")
        assert served_version(server) == 2
        client.unload_model(NAME)
        assert not client.is_model_ready(NAME)
        assert not client.is_server_ready()
        assert client.is_server_live()
        response = server.client.post(f"/v2/repository/models/{NAME}/load", json={"parameters": {"version": 1}})
        assert response.status_code == 200
        assert client.is_model_ready(NAME, "1")
        assert client.is_server_ready()
        assert [
            each["version"] for each in server.client.post("/v2/repository/index", json={"ready": True}).json()
        ] == ["1"]
        for model in ("unknown", "..", ".hidden"):
            with pytest.raises(InferenceServerException):
                client.load_model(model)
            with pytest.raises(InferenceServerException):
                client.unload_model(model)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"version": 1}, "version: unknown parameter; expected one of parameters"),
        ({"parameters": {"vershun": 1}}, "vershun: unknown parameter; expected one of version, unload_dependents"),
        ({"parameters": {"version": -1}}, "version: Input should be greater than or equal to 0"),
    ],
)
def test_a_malformed_unload_unloads_nothing(
    shelf: Callable[..., Running], body: dict[str, object], message: str
) -> None:
    server = shelf()
    for verb in ("unload", "load"):
        response = server.client.post(f"/v2/repository/models/{NAME}/{verb}", json=body)
        assert (response.status_code, response.json()["error"]) == (400, f"the body cannot be read: {message}")
    assert served_version(server) == 1


def test_damaged_version_is_refused_with_the_reason_and_the_old_one_stays(shelf: Callable[..., Running]) -> None:
    server = shelf()
    folder = server.container.settings.model_repository
    copytree(folder / NAME / "1", folder / NAME / "2")
    (folder / NAME / "2" / "model.safetensors").write_bytes(b"junk")
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(InferenceServerException, match="safetensors"):
            client.load_model(NAME)
        assert served_version(server) == 1
        [entry] = [each for each in client.get_model_repository_index() if each["version"] == "2"]
        assert "safetensors" in entry["reason"]


def test_swaps_under_load_lose_no_request(shelf: Callable[..., Running]) -> None:
    server = shelf()
    folder = server.container.settings.model_repository
    statuses: list[int] = []
    versions: list[int] = []
    done = False

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            while not done:
                response = client.post("/classify", content=encoded(picture(0)), headers=PNG)
                statuses.append(response.status_code)
                versions.append(response.json()["model"]["version"])

    with ThreadPoolExecutor(3) as pool:
        requests = [pool.submit(ask) for _ in range(3)]
        for version in range(2, 8):
            copytree(folder / NAME / "1", folder / NAME / str(version))
            assert server.client.post(f"/v2/repository/models/{NAME}/load").status_code == 200
            until(lambda version=version: version in versions)  # type: ignore[misc]
        done = True
        for each in requests:
            each.result()
    assert set(statuses) == {200}
    assert set(versions) == set(range(1, 8))
    assert list(server.container.repository.loaded[NAME]) == [7]


def test_watching_serves_new_versions_and_skips_damaged_ones(shelf: Callable[..., Running]) -> None:
    server = shelf(watch_interval=0.02)
    folder = server.container.settings.model_repository
    (folder / NAME / "2").mkdir()
    (folder / NAME / "2" / "model.safetensors").write_bytes(b"half written")

    def reason(version: int) -> str:
        entries = server.client.get("/models").json()["models"]
        return str(next(each["reason"] for each in entries if each["version"] == version))

    until(lambda: "should hold" in reason(2))
    for name in ("model.safetensors", "config.json"):
        (folder / NAME / "2" / name).write_bytes((folder / NAME / "1" / name).read_bytes())
    until(lambda: 2 in server.container.repository.loaded[NAME])
    assert server.client.post(f"/v2/repository/models/{NAME}/unload").status_code == 200
    copytree(folder / NAME / "1", folder / "another" / "1")
    until(lambda: "another" in server.container.repository.loaded)
    assert server.container.repository.default == NAME
    assert NAME not in server.container.repository.loaded


def test_watching_begins_after_the_startup(
    repository: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, looks = threading.Event(), []

    def look(folder: Path, beside: Beside) -> dict[Wanted, Files]:
        looks.append(over.is_set())
        return wanted_files(folder, beside)

    def load(_: Path) -> LoadedModel:
        assert over.wait(20)
        return replace(loaded)

    monkeypatch.setattr("service.repository.watcher.wanted_files", look)
    server = Running(Settings(model_repository=repository, watch_interval=0.001), load)
    try:
        for _ in range(20):
            assert server.client.get("/health/live").status_code == 200
        over.set()
        server.wait_ready()
        until(lambda: bool(looks))
        assert all(looks)
    finally:
        over.set()
        server.stop()


def test_watching_waits_for_a_first_model(tmp_path: Path, repository: Path, loaded: LoadedModel) -> None:
    server = Running(Settings(model_repository=tmp_path, watch_interval=0.02), lambda _: replace(loaded))
    try:
        until(lambda: server.container.watcher.startup_done)
        assert server.client.get("/health/ready").json()["reasons"] == ["no model is loaded"]
        copytree(repository / NAME, tmp_path / NAME)
        server.wait_ready()
    finally:
        server.stop()


def unfinished(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{".encode()


MANAGEMENT = ["/v2/repository/index", f"/v2/repository/models/{NAME}/load", f"/v2/repository/models/{NAME}/unload"]


@pytest.mark.parametrize("path", MANAGEMENT)
def test_unfinished_body_times_out(start: Callable[..., Running], path: str) -> None:
    server = start(request_timeout=0.3)
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(unfinished(path))
        assert b"408 Request Timeout" in client.recv(1000)
    until(lambda: server.container.admission.byte_count == 0)


@pytest.mark.parametrize("path", MANAGEMENT)
def test_large_body_is_not_read(running: Running, path: str) -> None:
    response = running.client.post(path, content=b" " * 5000)
    assert (response.status_code, "error" in response.json()) == (413, True)
