"""Convert a decoded image to the network's input by the InputSpec in a checkpoint's config."""

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
LONGEST = 16
"""The largest ratio of the sides of an image that is resized completely."""
ResizeRule = Literal["exact", "torchvision", "transformers", "stretch"]


class InputSpec(BaseModel):
    """How a network's input is made from an image.

    The shorter side is resized to ``resize`` pixels and the centre cropped to ``height`` x ``width``. RGB values are
    scaled to 0..1. Then ``mean`` is subtracted and the result divided by ``std``.

    ``resize_rule`` says how fractions of a pixel are treated. "exact" keeps them: the crop's centre is the image's.
    "torchvision" (and timm) and "transformers" round the longer side down to a number of pixels. The crop's offset is
    then rounded to the nearest even number, or down. "stretch" resizes both sides to ``resize`` pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    resize: int = Field(ge=1, le=4096)
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    resize_rule: ResizeRule = "exact"
    mean: tuple[float, float, float]
    std: tuple[Deviation, Deviation, Deviation]


def prepare(image: Image.Image, spec: InputSpec) -> NDArray[np.float32]:
    """Return the network's input float32 [3, H, W] for an RGB image of any size."""
    return normalise(np.asarray(fit(image, spec)), spec)


def normalise(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.float32]:
    """Return network inputs float32 [..., 3, H, W] for pixels uint8 [..., H, W, 3]."""
    scale, shift = normalisation(spec)
    return np.ascontiguousarray(np.moveaxis(pixels.astype(np.float32) * scale - shift, -1, -3))


def normalisation(spec: InputSpec) -> NDArray[np.float32]:
    """Return scale and shift [2, 3] of each colour, which normalise pixels 0..255: pixel * scale - shift."""
    scale = 1 / (255 * np.asarray(spec.std, np.float32))
    return np.stack([scale, np.asarray(spec.mean, np.float32) / np.asarray(spec.std, np.float32)])


def fit(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Return the image resized and cropped to the network's height and width."""
    resized = resize_shorter_side(image, spec) if spec.resize_rule == "exact" else resize_whole(image, spec)
    return crop_centre(resized, spec)


def resize_shorter_side(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Return the image with its shorter side resized to ``spec.resize`` pixels.

    Only the part inside the crop is resampled. Otherwise a long thin image would become huge.
    """
    width, height = image.size
    shorter = min(width, height)
    scale = shorter / spec.resize
    kept_width, kept_height = min(width, spec.width * scale), min(height, spec.height * scale)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    size = (max(1, round(kept_width / scale)), max(1, round(kept_height / scale)))
    box = (left, top, left + kept_width, top + kept_height)
    return image.resize(size, FILTERS[spec.interpolation], box=box)


def resize_whole(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Return the centre of the image after resizing to a number of pixels, for the other resize rules.

    An image that is very long and thin is resized as by "exact", to save memory.
    """
    shorter = min(image.size)
    sides = (shorter, shorter) if spec.resize_rule == "stretch" else image.size
    if max(sides) > LONGEST * shorter:
        return resize_shorter_side(image, spec)
    width, height = (int(spec.resize * side / shorter) for side in sides)
    resized = image.resize((width, height), FILTERS[spec.interpolation])
    left, top = crop_start(width - spec.width, spec), crop_start(height - spec.height, spec)
    return resized.crop((left, top, min(width, left + spec.width), min(height, top + spec.height)))


def crop_start(excess: int, spec: InputSpec) -> int:
    """Return the first pixel of the crop on a side that has ``excess`` pixels more than the crop."""
    return max(0, excess // 2 if spec.resize_rule == "transformers" else round(excess / 2))


def crop_centre(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Return the centre ``spec.height`` x ``spec.width`` of the image. If it is smaller, it is padded with black."""
    left, top = (image.width - spec.width) // 2, (image.height - spec.height) // 2
    if (left, top) == (0, 0) and image.size == (spec.width, spec.height):
        return image
    return image.crop((left, top, left + spec.width, top + spec.height))
