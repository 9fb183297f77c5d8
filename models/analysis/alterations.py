"""Make altered copies of images."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from models.analysis.sample import Pixels


def resize(pixels: Pixels, factor: float) -> Pixels:
    """Return the images resized to [N, H * factor, W * factor, 3], at least 8 x 8 pixels."""
    size = max(8, round(pixels.shape[2] * factor)), max(8, round(pixels.shape[1] * factor))
    return map_images(pixels, lambda image: image.resize(size, Image.Resampling.BICUBIC))


def scale_brightness(pixels: Pixels, factor: float) -> Pixels:
    """Return the images with every value multiplied by ``factor``."""
    return to_pixels(pixels.astype(np.float32) * factor)


def scale_contrast(pixels: Pixels, factor: float) -> Pixels:
    """Return the images with ``factor`` times the contrast around the mean of each image."""
    mean = pixels.mean((1, 2, 3), keepdims=True, dtype=np.float32)
    return to_pixels((pixels - mean) * factor + mean)


def blur(pixels: Pixels, deviation: float) -> Pixels:
    """Return the images blurred by a Gaussian whose standard deviation is in percent of the image width."""
    radius = deviation * pixels.shape[2] / 100
    return map_images(pixels, lambda image: image.filter(ImageFilter.GaussianBlur(radius))) if radius else pixels


def compress_jpeg(pixels: Pixels, quality: int) -> Pixels:
    """Return the images after JPEG compression."""

    def compress(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return map_images(pixels, compress)


def shift(pixels: Pixels, across: int, down: int) -> Pixels:
    """Return the images shifted by a number of pixels. The edge pixels are repeated."""
    _, height, width, _ = pixels.shape
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - across, 0, width - 1)
    return pixels[:, rows][:, :, columns]


def map_images(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Return the images after a Pillow function."""
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])


def to_pixels(values: NDArray[np.float32]) -> Pixels:
    """Return values rounded and clipped to 0..255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Alteration:
    """An alteration of images: its function, the strength that changes nothing, and the strengths to measure."""

    change: Callable[[Pixels, float], Pixels]
    neutral: float
    strengths: tuple[float, ...]


ALTERATIONS = {
    "scale": Alteration(resize, 1.0, (0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0)),
    "brightness": Alteration(scale_brightness, 1.0, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)),
    "contrast": Alteration(scale_contrast, 1.0, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)),
    "blur": Alteration(blur, 0.0, (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)),
}
