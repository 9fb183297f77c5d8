"""A repository with two networks of random weights, and cascades of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.cascade.config import CascadeConfig, Stage, write_cascade_config
from tests.service.parts import LABELS, SPEC, write_random

FIRST, SECOND = "cifar10_rnn_gate_38", "cifar10_resnet_38"


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with version 1 of a SkipNet and of a dense network."""
    repository = tmp_path_factory.mktemp("stages")
    for number, name in enumerate((FIRST, SECOND)):
        write_random(repository / name / "1", number, name)
    return repository


@pytest.fixture
def write(stages: Path) -> Callable[..., Path]:
    """A function that writes a cascade of the two networks and returns its folder."""

    def write(margin: float = 0.3, version: int = 1, **changes: object) -> Path:
        folder = stages / "cascade" / str(version)
        first = Stage(model=FIRST, version=1, execute_threshold=0.5, temperature=1.3, margin=margin)
        last = Stage(model=SECOND, version=1, execute_threshold=0.5, temperature=0.8)
        config = CascadeConfig(stages=(first, last), labels=LABELS, input=SPEC, code="test")
        write_cascade_config(folder, config.model_copy(update=changes))
        return folder

    return write


@pytest.fixture(scope="session")
def images() -> NDArray[np.float32]:
    """Forty normalised images [40, 3, 32, 32] of varied contrast."""
    random = np.random.default_rng(3)
    coarse = random.normal(size=(40, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
    return (coarse * np.geomspace(0.2, 3, 40)[:, None, None, None]).astype(np.float32)
