"""The networks for the tests of the CUDA graph engine."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from models.engines.folding import FoldedNetwork, fold
from models.macs import Mode
from models.network import SkipNet

ARCHITECTURES = [
    "cifar10_rnn_gate_38",
    "cifar10_feedforward_38",
    "imagenet_rnn_gate_18",
    "imagenet_rnn_gate_50",
    "cifar10_resnet_38",
]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def network(architecture: str, varied_network: Callable[[str], SkipNet]) -> SkipNet:
    return varied_network(architecture)


@pytest.fixture(scope="module")
def folded(network: SkipNet) -> FoldedNetwork:
    return fold(network)


@pytest.fixture(scope="module")
def pictures(architecture: str, make_images: Callable[[str], NDArray[np.float32]]) -> NDArray[np.float32]:
    return make_images(architecture)


@pytest.fixture(params=["mask", "branch"])
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen
