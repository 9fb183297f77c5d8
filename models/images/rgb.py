"""Convert loaded images of any mode to RGB."""

import numpy as np
from PIL import Image

from models.images.profiles import to_srgb


def to_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB in sRGB of a loaded image of any mode.

    16 bits are cut to 8. Colours are converted from an embedded ICC profile, and CMYK without one as Pillow does.
    Transparent pixels are blended with white.
    """
    # If Pillow converts an image in place, the image gets the sRGB profile.
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # Pillow would clip these values at 255.
        image = to_8_bit_grey(image)
    elif image.has_transparency_data and not is_opaque(image):
        colours = image if image.mode == "RGBA" else image.convert("RGBA")
        colours = to_srgb(colours, profile)
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(colours, mask=colours)
        return white
    elif image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    image = to_srgb(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_8_bit_grey(image: Image.Image) -> Image.Image:
    """Return the high byte of 16-bit grey values, with white instead of the transparent value."""
    values = np.asarray(image)
    grey = (values.clip(0, 65535) >> 8).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def is_opaque(image: Image.Image) -> bool:
    """Return whether the alpha of a BMP is 0 everywhere. Its writer then left the channel unused."""
    return image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0)
