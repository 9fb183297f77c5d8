"""Images under study as pixels: what they look like, and altered copies of them."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from models.data.source import Source
from models.preprocessing import InputSpec, fit

Pixels = NDArray[np.uint8]
LUMA = np.array((0.299, 0.587, 0.114), np.float32)
"""ITU-R BT.601."""


@dataclass(frozen=True)
class Sample:
    """Images as the network sees them, ``pixels`` uint8 [N, H, W, 3], and their ``labels`` int64 [N]."""

    pixels: Pixels
    labels: NDArray[np.int64]

    def first(self, count: int) -> "Sample":
        return Sample(self.pixels[:count], self.labels[:count])


def read_sample(source: Source, spec: InputSpec, count: int) -> Sample:
    """Return ``count`` images of a source, drawn at random without repetition; all of it where it has fewer."""
    chosen = np.random.default_rng(0).permutation(len(source))[:count]
    pixels = np.empty((len(chosen), spec.height, spec.width, 3), np.uint8)
    labels = np.empty(len(chosen), np.int64)
    for place, index in enumerate(chosen):
        image, labels[place] = source.image(int(index))
        pixels[place] = np.asarray(fit(image, spec))
    return Sample(pixels, labels)


def brightness(pixels: Pixels) -> NDArray[np.float32]:
    """Return each image's mean luma [N], in 0..1."""
    return np.asarray(luma(pixels).mean((1, 2)), np.float32)


def contrast(pixels: Pixels) -> NDArray[np.float32]:
    """Return the standard deviation of each image's luma [N], in 0..0.5."""
    return np.asarray(luma(pixels).std((1, 2)), np.float32)


def sharpness(pixels: Pixels) -> NDArray[np.float32]:
    """Return the standard deviation of each image's Laplacian [N] over that of its luma: high for fine detail.

    Pech-Pacheco et al. 2000 measure focus by the Laplacian's variance; over the contrast it does not rise with it.
    """
    y = luma(pixels)
    laplacian = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * y[:, 1:-1, 1:-1]
    return np.asarray(laplacian.std((1, 2)) / np.maximum(y.std((1, 2)), 1e-3), np.float32)


def luma(pixels: Pixels) -> NDArray[np.float32]:
    return np.asarray(pixels.astype(np.float32) @ LUMA / 255, np.float32)


def resize(pixels: Pixels, factor: float) -> Pixels:
    """Return the images resized, [N, H * factor, W * factor, 3]: the network then sees smaller or larger maps."""
    size = max(8, round(pixels.shape[2] * factor)), max(8, round(pixels.shape[1] * factor))
    return each(pixels, lambda image: image.resize(size, Image.Resampling.BICUBIC))


def brighten(pixels: Pixels, factor: float) -> Pixels:
    return clip(pixels.astype(np.float32) * factor)


def stretch(pixels: Pixels, factor: float) -> Pixels:
    """Return the images with ``factor`` times the contrast, about each image's own mean."""
    mean = pixels.mean((1, 2, 3), keepdims=True, dtype=np.float32)
    return clip((pixels - mean) * factor + mean)


def blur(pixels: Pixels, deviation: float) -> Pixels:
    """Return the images blurred by a Gaussian of ``deviation``, in hundredths of the image's width."""
    radius = deviation * pixels.shape[2] / 100
    return each(pixels, lambda image: image.filter(ImageFilter.GaussianBlur(radius))) if radius else pixels


def compress(pixels: Pixels, quality: int) -> Pixels:
    """Return the images as they come back from a JPEG file of that quality."""

    def through_file(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return each(pixels, through_file)


def shift(pixels: Pixels, across: int, down: int) -> Pixels:
    """Return the images moved by so many pixels; the edge is repeated where nothing is known."""
    _, height, width, _ = pixels.shape
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - across, 0, width - 1)
    return pixels[:, rows][:, :, columns]


def each(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])


def clip(values: NDArray[np.float32]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
