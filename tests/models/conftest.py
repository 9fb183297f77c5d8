"""Fixtures of the tests of models."""

import numpy as np
import pytest


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
