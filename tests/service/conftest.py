from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from numpy.typing import NDArray

from models.checkpoint import read_checkpoint
from models.preprocessing import prepare
from service.repository.loaded_model import LoadedModel
from service.repository.loading import LoadError, load_version
from service.settings import EngineOptions, Settings
from tests.service.parts import NAME, ControlledEngine, Process, Running, Shared, engine_of, picture, write_random


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one model of one version."""
    folder = tmp_path_factory.mktemp("repository")
    write_random(folder / NAME / "1", seed=0)
    return folder


@pytest.fixture(scope="session")
def loaded(repository: Path) -> LoadedModel:
    """The model, loaded once for all tests that run in this process."""
    return load_version(repository / NAME / "1", EngineOptions(engine="torch", routing="branch", threads=1), 8)


@pytest.fixture
def model(loaded: LoadedModel) -> LoadedModel:
    """The loaded model with its own engine, which the test can hold. A test may change it."""
    return replace(loaded, engine=ControlledEngine(loaded.engine))


@pytest.fixture(scope="session")
def running(repository: Path, loaded: LoadedModel) -> Iterator[Running]:
    """One server, shared by the tests that do not change it."""
    server = Running(
        Settings(model_repository=repository, max_batch_size=8, dense_sample_interval=0), lambda _: replace(loaded)
    ).wait_ready()
    yield server
    server.stop()


@pytest.fixture
def start(repository: Path, model: LoadedModel) -> Iterator[Callable[..., Running]]:
    """Start servers with the test's settings and the fixture `model`, whose engine the test can hold."""
    started: list[Running] = []

    def begin(**settings: object) -> Running:
        options: dict[str, object] = {"model_repository": repository, "max_batch_size": 8} | settings
        options.setdefault("dense_sample_interval", 0)
        started.append(Running(Settings(**options), lambda _: model))  # type: ignore[arg-type]
        return started[-1].wait_ready()

    yield begin
    engine_of(model).open.set()
    for server in started:
        server.stop()


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """The test's own copy of `repository`, to add versions to and to damage."""
    return copytree(repository, tmp_path / "repository")


@pytest.fixture
def decoded(loaded: LoadedModel) -> Callable[[int], NDArray[np.float32]]:
    return lambda seed: prepare(picture(seed), loaded.checkpoint.config.input)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    launched: list[Process] = []

    def begin(*options: str, **environment: str) -> Process:
        launched.append(Process(tmp_path / f"log{len(launched)}", *options, **environment))
        return launched[-1]

    yield begin
    for each in launched:
        each.end()


@pytest.fixture
def shelf(repository: Path, tmp_path: Path, loaded: LoadedModel) -> Iterator[Callable[..., Running]]:
    """Start servers on a copy of the repository. They read its versions and share one engine."""
    folder = Path(copytree(repository, tmp_path / "repository"))
    started: list[Running] = []

    def load(version: Path) -> LoadedModel:
        try:
            return replace(loaded, checkpoint=read_checkpoint(version), engine=Shared(loaded))
        except ValueError as error:
            raise LoadError(str(error)) from error

    def begin(**settings: object) -> Running:
        started.append(Running(Settings(model_repository=folder, **settings), load))  # type: ignore[arg-type]
        return started[-1].wait_ready()

    yield begin
    for server in started:
        server.stop()
