import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

from service.repository.loaded_model import LoadedModel
from service.repository.loading import LoadError
from service.settings import Settings
from tests.service.parts import NAME, PNG, Running, encoded, engine_of, picture, until


async def never(_: object, __: int) -> bool:
    return False


def reasons(server: Running, probe: str = "ready") -> list[str]:
    response = server.client.get(f"/health/{probe}")
    result = response.json()
    assert (response.status_code == 200) == result[probe] == (not result["reasons"])
    return list(result["reasons"])


def test_ready_and_live(running: Running) -> None:
    assert reasons(running, "ready") == reasons(running, "live") == []
    assert running.metric("ready") == 1


def test_socket_answers_while_the_model_loads_and_is_not_ready(repository: Path, loaded: LoadedModel) -> None:
    go = threading.Event()

    def load(_: Path) -> LoadedModel:
        assert go.wait(20)
        return replace(loaded)

    server = Running(Settings(model_repository=repository), load)
    try:
        assert reasons(server, "live") == []
        assert reasons(server) == ["models are being loaded"]
        assert server.metric("ready") == 0
        refused = server.client.post("/classify", content=b"x", headers=PNG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        until(lambda: server.client.get("/models").json()["models"][0]["state"] == "LOADING")
        go.set()
        server.wait_ready()
        assert server.client.get("/models").json()["models"][0]["state"] == "READY"
    finally:
        go.set()
        server.stop()


def test_ready_with_the_default_model_while_others_are_being_loaded(folder: Path, loaded: LoadedModel) -> None:
    go = threading.Event()
    copytree(folder / NAME, folder / "another")
    order: list[str] = []

    def load(version: Path) -> LoadedModel:
        order.append(version.parent.name)
        if version.parent.name == NAME:
            return replace(loaded)
        assert go.wait(20)
        return replace(loaded, checkpoint=replace(loaded.checkpoint, folder=version))

    server = Running(Settings(model_repository=folder, default_model=NAME), load)
    try:
        until(lambda: reasons(server) == [])
        assert server.client.post("/classify", content=encoded(picture(0)), headers=PNG).status_code == 200
        refused = server.client.post("/classify?model=another", content=encoded(picture(0)), headers=PNG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) >= 1
        assert server.client.get("/v2/models/another/ready").status_code == 503
        go.set()
        until(lambda: server.client.get("/v2/models/another/ready").status_code == 200)
        assert order == [NAME, "another"]
    finally:
        go.set()
        server.stop()


@pytest.mark.parametrize(
    ("default", "reason"), [("cifar10_rnn_gate_74", "model cifar10_rnn_gate_74 is not loaded"), (NAME, None)]
)
def test_not_ready_without_the_default_model(
    repository: Path, loaded: LoadedModel, default: str, reason: str | None
) -> None:
    server = Running(Settings(model_repository=repository, default_model=default), lambda _: replace(loaded))
    try:
        until(lambda: server.container.watcher.startup_done)
        assert reasons(server) == ([reason] if reason else [])
    finally:
        server.stop()


def test_without_a_loadable_model_it_is_not_ready_and_the_process_ends(repository: Path) -> None:
    def load(_: Path) -> LoadedModel:
        raise LoadError("worn out")

    server = Running(Settings(model_repository=repository), load)
    server.thread.join(20)
    assert not server.thread.is_alive()
    assert server.server.exit_code == 1
    assert f"model {NAME} is not loaded" in server.container.health.not_ready()
    server.client.close()


def test_dead_engine_ends_readiness_liveness_and_the_process(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start()
    engine_of(model).fails = lambda _: True
    with pytest.MonkeyPatch.context() as patch:
        # Keeps the process alive while the probes are sent.
        patch.setattr(type(server.server), "on_tick", never)
        failed = server.client.post("/classify?execute_threshold=1", content=encoded(picture(0)), headers=PNG)
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "engine_failed")
        until(lambda: not server.container.pipeline.batcher.alive)
        assert reasons(server, "live") == reasons(server, "ready") == ["the engine thread is dead"]
        refused = server.client.post("/classify", content=encoded(picture(0)), headers=PNG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    server.thread.join(20)
    assert not server.thread.is_alive()
    assert server.server.exit_code == 1


def test_a_stuck_engine_is_not_ready_and_later_not_live(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start(request_timeout=0.05, drain_timeout=0.1)
    engine_of(model).open.clear()
    with pytest.MonkeyPatch.context() as patch:
        # Keeps the process alive while the probes are sent.
        patch.setattr(type(server.server), "on_tick", never)
        assert server.client.post("/classify", content=encoded(picture(0)), headers=PNG).status_code == 504
        until(lambda: server.container.pipeline.batcher.busy_for > 0.1)
        assert reasons(server, "ready") == reasons(server, "live") == ["the engine is stuck"]
        engine_of(model).open.set()
        until(lambda: reasons(server) == [])
        engine_of(model).open.clear()
        assert server.client.post("/classify", content=encoded(picture(0)), headers=PNG).status_code == 504
    # Not every container engine restarts an unhealthy container.
    server.thread.join(20)
    assert not server.thread.is_alive()
    assert server.server.exit_code == 1
