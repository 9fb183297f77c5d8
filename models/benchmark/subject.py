"""The subject of a benchmark: a network and images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.architectures import find_architecture
from models.checkpoint import Checkpoint, Config, Quantization
from models.data.source import Source
from models.engines.folding import fold
from models.engines.native.activation_limits import measure_limits
from models.evaluation.forced_routes import random_network
from models.network import SkipNet
from models.preprocessing import InputSpec, prepare

ROUTED_IMAGES = 256


@dataclass(frozen=True)
class Subject:
    """A network to measure with normalised images [N, 3, H, W].

    ``name`` is its name in tables. With ``own_routing`` the network decides the routes, otherwise they are forced.
    """

    name: str
    architecture: str
    network: SkipNet
    images: NDArray[np.float32]
    own_routing: bool

    def checkpoint(self, network: SkipNet) -> Checkpoint:
        """Return a variant of the network as a checkpoint in memory."""
        height, width = self.images.shape[2:]
        spec = InputSpec(height=height, width=width, resize=height, mean=(0, 0, 0), std=(1, 1, 1))
        labels = [str(label) for label in range(network.head.out_features)]
        config = Config(
            architecture=self.architecture, labels=labels, input=spec, code="bench", quantization=self.quantize(network)
        )
        return Checkpoint(Path("bench"), config, network)

    def quantize(self, network: SkipNet) -> Quantization:
        """Return the scales of a variant for the engine native_int16, measured on the first image and not verified."""
        limits = measure_limits(fold(network), [torch.from_numpy(self.images[:1])], 0.5)
        return Quantization(
            activation_limits=[list(block) for block in limits],
            calibration_images=1,
            images=0,
            execute_threshold=0.5,
            decisions_changed=0,
            labels_changed=0,
            accuracy=0,
            float_accuracy=0,
        )


def forced_subject(architecture: str, count: int, size: int | None = None) -> Subject:
    """Return an architecture with random weights and noise images.

    The images have ``size`` pixels a side, by default the architecture's size.
    """
    size = size or find_architecture(architecture).image_size
    return Subject(architecture, architecture, random_network(architecture), noise(count, size, size), False)


def forced_checkpoint(checkpoint: Checkpoint, count: int) -> Subject:
    """Return the network of a checkpoint with noise images, to be measured along forced routes."""
    spec = checkpoint.config.input
    pixels = noise(count, spec.height, spec.width)
    return Subject(checkpoint.name, checkpoint.config.architecture, checkpoint.network, pixels, own_routing=False)


def executed_share(checkpoint: Checkpoint) -> float | None:
    """Return the mean share of executed gated blocks in the checkpoint's evaluation, if it has one."""
    evaluation = checkpoint.config.evaluation
    if evaluation is None or not evaluation.execution_rate:
        return None
    return sum(evaluation.execution_rate) / len(evaluation.execution_rate)


def noise(count: int, height: int, width: int) -> NDArray[np.float32]:
    """Return seeded normal noise [images, 3, height, width]."""
    return np.random.default_rng(0).standard_normal((count, 3, height, width), np.float32)


def routed_subject(checkpoint: Checkpoint, source: Source) -> Subject:
    """Return the network of a checkpoint with images of ``source``, prepared as in the service."""
    spec = checkpoint.config.input
    count = min(ROUTED_IMAGES, len(source))
    prepared = np.stack([prepare(source.image(index, spec.resize)[0], spec) for index in range(count)])
    return Subject(checkpoint.name, checkpoint.config.architecture, checkpoint.network, prepared, own_routing=True)
