"""Colours are converted from ICC profiles to sRGB."""

import struct
import zlib
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.images.encoded import EncodedImage, decode_image
from models.images.profiles import MAX_PROFILE, find_transform
from tests.models.images.test_encoded import pixels, png_chunk
from tests.service.parts import encoded, picture

Colour = tuple[int, ...]


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def icc_profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Return an ICC profile, version 2.4."""
    place = 128 + 4 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += name + struct.pack(">II", place + len(content), len(value))
        content += value
    header = struct.pack(">I4sI4s4s4s6H4s", place + len(content), b"\0" * 4, 0x02400000, kind, space, connection,
                         2026, 1, 1, 0, 0, 0, b"acsp")  # fmt: skip
    header = header.ljust(68, b"\0") + fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + table + content


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


WHITE = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)}


def matrix_profile(*primaries: tuple[float, float, float]) -> bytes:
    """Return the profile of a screen with gamma 2.2 and these primaries in XYZ, adapted to D50."""
    tags = dict(WHITE)
    for letter, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags |= {letter + b"XYZ": b"XYZ \0\0\0\0" + fixed(*primary), letter + b"TRC": curve(2.2)}
    return icc_profile(b"mntr", b"RGB ", b"XYZ ", tags)


def ink_profile() -> bytes:
    """Return the profile of a printer whose cyan ink is green, and whose other inks are black."""
    table = b"".join(
        bytes((0, 128, 128)) if any(others) else bytes((150, 78, 178)) if cyan else bytes((255, 128, 128))
        for cyan, *others in product((0, 1), repeat=4)
    )
    straight = bytes(range(256))
    head = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return icc_profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": head + straight * 4 + table + straight * 3})


DISPLAY_P3 = matrix_profile((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE_RGB = matrix_profile((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
LINEAR_GREY = icc_profile(b"mntr", b"GRAY", b"XYZ ", WHITE | {b"kTRC": curve(1)})
INK = ink_profile()


def decoded_colour(mode: str, colour: Colour | int, kind: str, profile: bytes | None, **options: object) -> Colour:
    data = encoded(Image.new(mode, (16, 16), colour), kind, icc_profile=profile, **options)
    return tuple(pixels(decode_image(data))[8, 8])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF"])
@pytest.mark.parametrize(
    ("profile", "stored", "shown"),
    [
        (DISPLAY_P3, (234, 51, 35), (255, 0, 0)),
        (DISPLAY_P3, (100, 150, 200), (76, 151, 205)),
        (ADOBE_RGB, (144, 255, 60), (0, 255, 0)),
        (ADOBE_RGB, (219, 0, 0), (255, 0, 0)),
    ],
)
def test_colours_are_converted_in_every_format(kind: str, profile: bytes, stored: Colour, shown: Colour) -> None:
    lossless = {"quality": 100, "lossless": True, "subsampling": "4:4:4", "chroma": 444}
    colour = decoded_colour("RGB", stored, kind, profile, **lossless)
    # Gamma 2.2 differs from sRGB's curve in dark tones, and JPEG changes pixels.
    assert np.abs(np.subtract(colour, shown)).max() < 14, colour
    plain = decoded_colour("RGB", stored, kind, None, **lossless)
    assert np.abs(np.subtract(plain, stored)).max() < 6


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_are_converted_by_their_profile(kind: str) -> None:
    red, green, blue = decoded_colour("CMYK", (255, 0, 0, 0), kind, INK)
    assert green > red + 40 and green > blue + 40
    assert min(decoded_colour("CMYK", (0, 0, 0, 0), kind, INK)) > 250
    # Without a profile, cyan ink is cyan.
    red, green, blue = decoded_colour("CMYK", (255, 0, 0, 0), kind, None)
    assert red < 5 and min(green, blue) > 250


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_greys_are_converted_by_their_profile(mode: str) -> None:
    grey = 128 if mode == "L" else 128 * 257
    assert abs(decoded_colour(mode, grey, "PNG", LINEAR_GREY)[0] - 188) < 3
    assert decoded_colour(mode, grey, "PNG", None) == (128, 128, 128)


def test_transparent_and_palette_images_are_converted() -> None:
    half = decoded_colour("RGBA", (234, 51, 35, 128), "PNG", DISPLAY_P3)
    assert np.abs(np.subtract(half, (255, 127, 127))).max() < 8
    palette = Image.new("RGB", (16, 16), (234, 51, 35)).quantize(4)
    colour = decode_image(encoded(palette, icc_profile=DISPLAY_P3)).getpixel((8, 8))
    assert np.abs(np.subtract(colour, (255, 0, 0))).max() < 14  # type: ignore[arg-type]


def test_a_png_with_megabytes_of_text_keeps_its_profile() -> None:
    plain = encoded(picture(0), icc_profile=DISPLAY_P3)
    text = png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"node " * 1_000_000))
    assert decode_image(plain[:33] + text + plain[33:]).tobytes() == decode_image(plain).tobytes()


@pytest.mark.parametrize(
    ("mode", "kind", "profile"),
    [("RGB", "PNG", DISPLAY_P3), ("P", "PNG", DISPLAY_P3), ("CMYK", "TIFF", INK), ("L", "PNG", LINEAR_GREY)],
)
def test_an_image_that_is_decoded_twice_is_converted_once(mode: str, kind: str, profile: bytes) -> None:
    stored = picture(0).convert(mode)
    image = EncodedImage(encoded(stored, kind, icc_profile=profile))
    first = image.decode().tobytes()
    assert first == image.decode().tobytes() != stored.convert("RGB").tobytes()


def test_an_srgb_profile_needs_no_conversion() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert find_transform(profile, "RGB") is None
    assert find_transform(DISPLAY_P3, "RGB") is not None


def unusable_profiles() -> dict[str, bytes]:
    """Return profiles that are damaged, do not describe RGB, or would take long to convert from."""
    return {
        "text": b"no profile",
        "cut": DISPLAY_P3[:200],
        "no tags": DISPLAY_P3[:128] + b"\0" * 4,
        "lost curve": DISPLAY_P3.replace(b"gTRC", b"gXXX"),
        "wrong offset": DISPLAY_P3.replace(b"rXYZ\0\0", b"rXYZ\xff\xff"),
        "of inks": INK,
        "of grey": LINEAR_GREY,
        "of Lab": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        "between devices": DISPLAY_P3.replace(b"mntr", b"link"),
        "very large": DISPLAY_P3 + b"\0" * MAX_PROFILE,
        "of any number of steps": DISPLAY_P3 + b"mpet",
        "of sRGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }


@pytest.mark.parametrize("name", unusable_profiles())
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_an_unusable_profile_is_ignored(name: str, kind: str) -> None:
    profile = unusable_profiles()[name]
    assert decode_image(encoded(picture(0), kind, icc_profile=profile)).tobytes() == (
        decode_image(encoded(picture(0), kind)).tobytes()
    )
