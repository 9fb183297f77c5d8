"""From a decoded image to the network's input. The weights own how: a checkpoint's config carries the spec."""

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
    """What a network expects: the image's shorter side resized to ``resize`` pixels, the centre cropped to
    ``height`` x ``width``, values scaled to 0..1, less ``mean``, over ``std`` (RGB).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    resize: int = Field(ge=1, le=4096)
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[Deviation, Deviation, Deviation]


def prepare(image: Image.Image, spec: InputSpec) -> NDArray[np.float32]:
    """Return the network's input, float32 [3, H, W], for an RGB image of any size."""
    return normalise(np.asarray(fit(image, spec)), spec)


def normalise(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.float32]:
    """Return network inputs float32 [..., 3, H, W] for pixels uint8 [..., H, W, 3] of their size."""
    scale = 1 / (255 * np.asarray(spec.std, np.float32))
    shift = np.asarray(spec.mean, np.float32) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(np.moveaxis(pixels.astype(np.float32) * scale - shift, -1, -3))


def fit(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Return the image at the network's height and width: resized, and its centre cut out."""
    return crop_centre(resize_shorter_side(image, spec), spec)


def resize_shorter_side(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Return the image, its shorter side ``spec.resize`` pixels; the longer one covers at least the crop.

    Only the part that the crop will keep is resampled, so that a long thin image can't grow into a huge one.
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
    """Return the centre ``spec.height`` x ``spec.width`` of the image, with black where it is smaller."""
    left, top = (image.width - spec.width) // 2, (image.height - spec.height) // 2
    if (left, top) == (0, 0) and image.size == (spec.width, spec.height):
        return image
    return image.crop((left, top, left + spec.width, top + spec.height))
