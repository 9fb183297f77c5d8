"""The sample of images that an analysis runs on."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.source import Source
from models.preprocessing import InputSpec, fit, normalise

Pixels = NDArray[np.uint8]
BATCH = 64


@dataclass(frozen=True)
class Sample:
    """Images at the input size of the network: ``pixels`` uint8 [N, H, W, 3] and ``labels`` int64 [N]."""

    pixels: Pixels
    labels: NDArray[np.int64]

    def first(self, count: int) -> "Sample":
        """Return the first ``count`` images."""
        return Sample(self.pixels[:count], self.labels[:count])

    def batches(self, spec: InputSpec) -> list[tuple[Tensor, Tensor]]:
        """Return the images in batches of at most `BATCH`: normalised float32 [N, 3, H, W] and labels int64 [N]."""
        starts = range(0, len(self.labels), BATCH)
        parts = [(self.pixels[start : start + BATCH], self.labels[start : start + BATCH]) for start in starts]
        return [(torch.from_numpy(normalise(pixels, spec)), torch.from_numpy(labels)) for pixels, labels in parts]


def read_sample(source: Source, spec: InputSpec, count: int) -> Sample:
    """Return ``count`` random images of a source without repetition, or all of them if the source has fewer."""
    chosen = np.random.default_rng(0).permutation(len(source))[:count]
    pixels = np.empty((len(chosen), spec.height, spec.width, 3), np.uint8)
    labels = np.empty(len(chosen), np.int64)
    for place, index in enumerate(chosen):
        image, labels[place] = source.image(int(index), spec.resize)
        pixels[place] = np.asarray(fit(image, spec))
    return Sample(pixels, labels)
