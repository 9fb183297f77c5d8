"""Fixtures of the gRPC tests: servers on a real socket, and Triton's client."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton

from service.repository.loaded_model import LoadedModel
from service.settings import Settings
from tests.service.grpc.requests import port_of
from tests.service.parts import Running


@pytest.fixture(scope="module")
def server(repository: Path, loaded: LoadedModel) -> Iterator[Running]:
    settings = Settings(model_repository=repository, max_batch_size=8, dense_sample_interval=0, grpc_port=0)
    running = Running(settings, lambda _: replace(loaded)).wait_ready()
    yield running
    running.stop()


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{port_of(server)}") as opened:
        yield opened


@pytest.fixture
def connect() -> Iterator[Callable[[Running], Any]]:
    opened: list[Any] = []

    def begin(server: Running) -> Any:
        opened.append(triton.InferenceServerClient(f"127.0.0.1:{port_of(server)}"))
        return opened[-1]

    yield begin
    for each in opened:
        each.close()
