"""The sample of images that an analysis runs on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.source import Source
from models.preprocessing import InputSpec, fit

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """Images at the input size of the network: ``pixels`` uint8 [N, H, W, 3] and ``labels`` int64 [N]."""

    pixels: Pixels
    labels: NDArray[np.int64]

    def first(self, count: int) -> "Sample":
        """Return the first ``count`` images."""
        return Sample(self.pixels[:count], self.labels[:count])


def read_sample(source: Source, spec: InputSpec, count: int) -> Sample:
    """Return ``count`` random images of a source without repetition, or all of them if the source has fewer."""
    chosen = np.random.default_rng(0).permutation(len(source))[:count]
    pixels = np.empty((len(chosen), spec.height, spec.width, 3), np.uint8)
    labels = np.empty(len(chosen), np.int64)
    for place, index in enumerate(chosen):
        image, labels[place] = source.image(int(index), spec.resize)
        pixels[place] = np.asarray(fit(image, spec))
    return Sample(pixels, labels)
