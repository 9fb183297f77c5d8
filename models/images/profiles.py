"""Convert colours from embedded ICC profiles to sRGB."""

from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageCms

MAX_PROFILE = 4 << 20
"""In bytes. Profiles of screens and cameras have kilobytes, those of printers up to 3 MiB."""
LISTED_STEPS = b"mpet"
"""The type of a conversion with any number of steps. Others have at most five, and bounded tables."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return a loaded RGB, RGBA, CMYK or L image with its colours converted from an ICC profile to sRGB.

    RGB and RGBA are converted in place, other modes to RGB. A profile that is damaged, too large or does not fit the
    image's mode is ignored, and the image is returned as it is.
    """
    if not profile or len(profile) > MAX_PROFILE or LISTED_STEPS in profile:
        return image
    try:
        transform = find_transform(bytes(profile), image.mode)
        if transform is None:
            return image
        if transform.output_mode != image.mode:
            return transform.apply(image)
        transform.apply_in_place(image)
    except MemoryError:
        raise
    except Exception:  # The library raises many types of exceptions.
        return image
    return image


@lru_cache(maxsize=4)
def find_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of an image's mode from a profile to sRGB, or None for a profile of sRGB.

    Raises various exceptions if the profile is damaged or does not fit the mode.
    """
    opened = ImageCms.ImageCmsProfile(BytesIO(profile))
    # Most photos have an sRGB profile.
    if "sRGB" in (opened.profile.profile_description or ""):
        return None
    return ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, mode if mode == "RGBA" else "RGB")
