"""What a benchmark measures: a network, and images for it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.architectures import find_architecture
from models.benchmark.forced_routes import random_network
from models.checkpoint import Checkpoint, Config
from models.data.source import Source
from models.network import SkipNet
from models.preprocessing import InputSpec, prepare

ROUTED_IMAGES = 256


@dataclass(frozen=True)
class Subject:
    """A network to measure, and normalised images [N, 3, H, W] to measure it with: along forced routes, or along
    those that it decides itself.
    """

    architecture: str
    network: SkipNet
    images: NDArray[np.float32]
    own_routing: bool

    def checkpoint(self, network: SkipNet) -> Checkpoint:
        """Return a checkpoint in memory of one of the subject's variants."""
        height, width = self.images.shape[2:]
        spec = InputSpec(height=height, width=width, resize=height, mean=(0, 0, 0), std=(1, 1, 1))
        labels = [str(label) for label in range(network.head.out_features)]
        config = Config(architecture=self.architecture, labels=labels, input=spec, code="bench")
        return Checkpoint(Path("bench"), config, network)


def forced_subject(architecture: str, images: int, size: int | None = None) -> Subject:
    """Return an architecture with random weights and noise of ``size`` pixels a side, or the architecture's own."""
    size = size or find_architecture(architecture).image_size
    noise = np.random.default_rng(0).standard_normal((images, 3, size, size), np.float32)
    return Subject(architecture, random_network(architecture), noise, own_routing=False)


def routed_subject(checkpoint: Checkpoint, source: Source) -> Subject:
    """Return a checkpoint, and images of ``source`` prepared as the service prepares them."""
    spec = checkpoint.config.input
    count = min(ROUTED_IMAGES, len(source))
    prepared = np.stack([prepare(source.image(index)[0], spec) for index in range(count)])
    return Subject(checkpoint.config.architecture, checkpoint.network, prepared, own_routing=True)
