"""Turn a decoded image into the network's input, as the InputSpec in a checkpoint's config says."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Deviation = Annotated[float, Field(gt=0)]


class InputSpec(BaseModel):
    """How a network's input is made from an image.

    The shorter side is resized to ``resize`` pixels and the centre cropped to ``height`` x ``width``. RGB values are
    scaled to 0..1; then ``mean`` is subtracted and the result divided by ``std``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    resize: int = Field(ge=1, le=4096)
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[Deviation, Deviation, Deviation]


def prepare(image: Image.Image, spec: InputSpec) -> NDArray[np.float32]:
    """Return the network's input float32 [3, H, W] for an RGB image of any size."""
    return normalise(np.asarray(fit(image, spec)), spec)


def normalise(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.float32]:
    """Return network inputs float32 [..., 3, H, W] for pixels uint8 [..., H, W, 3]."""
    scale = 1 / (255 * np.asarray(spec.std, np.float32))
    shift = np.asarray(spec.mean, np.float32) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(np.moveaxis(pixels.astype(np.float32) * scale - shift, -1, -3))


def fit(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Return the image resized and cropped to the network's height and width."""
    return crop_centre(resize_shorter_side(image, spec), spec)


def resize_shorter_side(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Return the image with its shorter side resized to ``spec.resize`` pixels.

    Only the part that the crop will keep is resampled. Otherwise a long thin image would grow into a huge one.
    """
    width, height = image.size
    shorter = min(width, height)
    scale = shorter / spec.resize
    kept_width, kept_height = min(width, spec.width * scale), min(height, spec.height * scale)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    size = (max(1, round(kept_width / scale)), max(1, round(kept_height / scale)))
    box = (left, top, left + kept_width, top + kept_height)
    return image.resize(size, FILTERS[spec.interpolation], box=box)


def crop_centre(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Return the centre ``spec.height`` x ``spec.width`` of the image, padded with black where it is smaller."""
    left, top = (image.width - spec.width) // 2, (image.height - spec.height) // 2
    if (left, top) == (0, 0) and image.size == (spec.width, spec.height):
        return image
    return image.crop((left, top, left + spec.width, top + spec.height))
