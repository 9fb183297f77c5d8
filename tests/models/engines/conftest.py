"""Random networks whose gates decide differently for different images. Untrained gates mostly decide equally."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from models.architectures import find_architecture
from models.checkpoint import Checkpoint, Config
from models.gates import FeedForwardGate, RNNGate
from models.network import SkipNet
from models.preprocessing import InputSpec


@pytest.fixture(scope="session")
def make_images() -> Callable[[str], NDArray[np.float32]]:
    """Return a function that makes eight very different images [8, 3, H, W] for an architecture's name."""

    def make(architecture: str) -> NDArray[np.float32]:
        size = 32 if architecture.startswith("cifar") else 64
        random = np.random.default_rng(7)
        coarse = random.normal(size=(8, 3, 4, 4)).repeat(size // 4, 2).repeat(size // 4, 3)
        contrast = np.geomspace(0.2, 3, 8)[:, None, None, None]
        brightness = random.normal(size=(8, 3, 1, 1))
        noise = random.normal(size=(8, 3, size, size))
        return (contrast * (coarse + 0.5 * noise) + brightness).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def varied_network(make_images: Callable[[str], NDArray[np.float32]]) -> Callable[[str], SkipNet]:
    """Return a function that builds a random network whose gates decide differently on `make_images`."""

    def build(architecture: str) -> SkipNet:
        random = torch.Generator().manual_seed(5)
        network = find_architecture(architecture).build().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
                parameter.normal_(0, fan_in**-0.5, generator=random)
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    assert module.running_mean is not None and module.running_var is not None
                    module.weight.uniform_(0.4, 0.8, generator=random)
                    module.running_mean.normal_(0, 0.1, generator=random)
                    module.running_var.uniform_(0.5, 1.5, generator=random)
            if network.controller is not None:
                network.controller.projection.weight.mul_(8)
                network.controller.projection.bias.zero_()
            hooks = [gate.register_forward_pre_hook(normalise_gate) for gate in network.gates]
            network(torch.from_numpy(make_images(architecture)))
            for hook in hooks:
                hook.remove()
        return network

    return build


def normalise_gate(gate: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    """Centre and scale the output of a gate's linear layer, so that these inputs get both decisions."""
    if isinstance(gate, FeedForwardGate):
        layer, features = gate.head, gate.features(inputs[0]).mean((2, 3))
    else:
        assert isinstance(gate, RNNGate)
        layer, features = gate.embedding, inputs[0].mean((2, 3))
    outputs = layer(features)
    scale = 2 / (outputs.std(0) + 1e-6)
    layer.weight.mul_(scale[:, None])
    layer.bias.copy_(-(layer.weight @ features.mean(0)))


@pytest.fixture(scope="session")
def varied_checkpoint(varied_network: Callable[[str], SkipNet]) -> Callable[[str], Checkpoint]:
    """Return a function that makes a checkpoint of such a network in memory."""

    def build(architecture: str) -> Checkpoint:
        network = varied_network(architecture)
        size = 32 if architecture.startswith("cifar") else 64
        config = Config(
            architecture=architecture,
            labels=[str(label) for label in range(network.head.out_features)],
            input=InputSpec(height=size, width=size, resize=size, mean=(0.5,) * 3, std=(0.25,) * 3),
            code="tests",
        )
        return Checkpoint(Path(architecture) / "1", config, network)

    return build


@pytest.fixture(scope="module")
def images(checkpoint: Checkpoint, make_images: Callable[[str], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return eight images for the network of the module's own fixture ``checkpoint``."""
    return make_images(checkpoint.config.architecture)
