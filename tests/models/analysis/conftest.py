"""The shipped checkpoint, and pictures that it routes differently."""

from collections.abc import Iterator

import numpy as np
import pytest

from models import SHIPPED
from models.analysis.routes import Runner
from models.analysis.sample import Sample
from models.checkpoint import Checkpoint, read_checkpoint
from models.engines import load_engine
from models.model_repository import find_version
from tests.service.parts import picture


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None))


@pytest.fixture(scope="session")
def sample() -> Sample:
    pixels = np.stack([np.asarray(picture(seed, 32, 32)) for seed in range(24)])
    return Sample(pixels, np.arange(24) % 10)


@pytest.fixture(scope="session")
def runner(checkpoint: Checkpoint) -> Iterator[Runner]:
    engine = load_engine(checkpoint, "onnxruntime", threads=1, routing="branch")
    yield Runner(engine, checkpoint.config.input, checkpoint.config.execute_threshold)
    engine.close()
