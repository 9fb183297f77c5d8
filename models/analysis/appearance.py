"""Measure the appearance of images: brightness, contrast and sharpness."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.analysis.sample import Pixels

LUMA = np.array((0.299, 0.587, 0.114), np.float32)
"""Weights of red, green and blue (ITU-R BT.601)."""


def brightness(pixels: Pixels) -> NDArray[np.float32]:
    """Return the mean luma of each image [N] in 0..1."""
    return np.asarray(luma(pixels).mean((1, 2)), np.float32)


def contrast(pixels: Pixels) -> NDArray[np.float32]:
    """Return the standard deviation of the luma of each image [N] in 0..0.5."""
    return np.asarray(luma(pixels).std((1, 2)), np.float32)


def sharpness(pixels: Pixels) -> NDArray[np.float32]:
    """Return the standard deviation of each image's Laplacian divided by that of its luma [N].

    Pech-Pacheco et al. (2000) measure focus by the variance of the Laplacian. The division makes the measure
    independent of the contrast.
    """
    y = luma(pixels)
    laplacian = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * y[:, 1:-1, 1:-1]
    return np.asarray(laplacian.std((1, 2)) / np.maximum(y.std((1, 2)), 1e-3), np.float32)


def luma(pixels: Pixels) -> NDArray[np.float32]:
    """Return the luma of pixels [N, H, W, 3] as [N, H, W] in 0..1."""
    return np.asarray(pixels.astype(np.float32) @ LUMA / 255, np.float32)


MEASURES: dict[str, Callable[[Pixels], NDArray[np.float32]]] = {
    "brightness": brightness,
    "contrast": contrast,
    "sharpness": sharpness,
}
