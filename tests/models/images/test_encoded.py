"""The pixels of image files: the same for training and serving."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.images.encoded import TRANSPOSITIONS, decode_image
from models.images.errors import ImageError
from tests.research import shared
from tests.service.parts import encoded, picture

KINDS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "GIF")
CAT = Path(__file__).parents[2] / "photos" / "cat.jpg"


def png_chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, more: bytes = b"") -> bytes:
    """Return a PNG file with the chunks ``more`` between its header and its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + more + pixels + png_chunk(b"IEND")


def pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_decoded(kind: str) -> None:
    image = decode_image(encoded(picture(0), kind))
    assert (image.mode, image.size) == ("RGB", (48, 40))
    assert np.abs(pixels(image) - pixels(picture(0))).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = picture(1, 48, 32)
    # The pixels that a camera would have stored with this orientation.
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = undo.get(orientation, TRANSPOSITIONS.get(orientation))
    stored = upright.transpose(turn) if turn is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(stored, kind, exif=exif.tobytes(), quality=95))
    assert image.size == upright.size
    assert np.abs(pixels(image) - pixels(upright)).mean() < 12


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\xff\xff\x01\x12", b"no exif"])
def test_damaged_exif_is_ignored(kind: str, exif: bytes) -> None:
    assert decode_image(encoded(picture(2), kind, exif=exif)).size == (48, 40)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_transparent_pixels_become_white(kind: str) -> None:
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 8, 16))
    decoded = pixels(decode_image(encoded(image, kind, lossless=True)))
    assert np.abs(decoded[4, 14] - 255).max() < 4
    assert np.abs(decoded[4, 1] - (0, 0, 255)).max() < 12


def test_half_transparent_is_half_white() -> None:
    decoded = decode_image(encoded(Image.new("LA", (4, 4), (0, 128))))
    assert decoded.getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_colour_of_a_palette_shows_white(kind: str) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 1), 1)
    decoded = decode_image(encoded(image, kind, transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 1)) == (200, 100, 0)


def test_16_bit_grey_keeps_its_shades() -> None:
    shades = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    decoded = pixels(decode_image(encoded(Image.fromarray(shades))))
    assert np.array_equal(decoded[0, :, 0], np.arange(256))


def test_16_bit_colour() -> None:
    colour = struct.pack(">3H", 0xFFFF, 0x8000, 0x0000)
    assert decode_image(png(2, 2, 16, 2, (b"\0" + colour * 2) * 2)).getpixel((1, 1)) == (255, 128, 0)


def test_cmyk() -> None:
    red, green, blue = pixels(decode_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")))[8, 8]
    assert red > 200
    assert max(green, blue) < 50


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_other_modes(mode: str) -> None:
    assert decode_image(encoded(picture(0).convert(mode))).mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "HEIF", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(pixels(decode_image(data))[8, 8] - (255, 0, 0)).max() < 12


def test_phone_photo_of_several_pictures() -> None:
    """Phones append a second JPEG, which Pillow calls MPO."""
    assert decode_image(encoded(picture(0), "MPO", save_all=True, append_images=[picture(1)])).size == (48, 40)


def test_large_jpeg_is_decoded_smaller_but_never_too_small() -> None:
    data = encoded(picture(3, 900, 700), "JPEG")
    assert decode_image(data, shorter_side=32).size == (225, 175)
    assert decode_image(data, shorter_side=175).size == (900, 700)


def case(name: str) -> bytes:
    return shared(f"cases/images/{name}").read_bytes()


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and first.tobytes() == second.tobytes()


def test_16_bit_grey_has_a_transparent_shade() -> None:
    rows = b"\0" + struct.pack(">2H", 0x1234, 0x1235)
    image = decode_image(png(2, 1, 16, 0, rows, png_chunk(b"tRNS", struct.pack(">H", 0x1234))))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0x12, 0x12, 0x12)]


def test_a_16_bit_grey_photo_is_not_white() -> None:
    grey = pixels(Image.open(CAT).convert("L"))
    assert np.abs(pixels(decode_image(case("grey16.png")))[..., 0] - grey).mean() < 1


@pytest.mark.parametrize("name", ["cutout_noise.png", "palette.png"])
def test_transparent_photos_are_on_white(name: str) -> None:
    data = case(name)
    rgba = np.asarray(Image.open(shared(f"cases/images/{name}")).convert("RGBA"))
    decoded = pixels(decode_image(data))
    transparent = rgba[..., 3] == 0
    assert transparent.mean() > 0.2 and (decoded[transparent] == 255).all()
    np.testing.assert_array_equal(decoded[rgba[..., 3] == 255], rgba[..., :3][rgba[..., 3] == 255])


def test_an_unused_alpha_channel_of_a_bmp_is_opaque() -> None:
    data = bytearray(case("v5_alpha0.bmp"))
    assert same(decode_image(bytes(data)), decode_image(case("comfy_zTXt.png")))
    first_pixel = int.from_bytes(data[10:14], "little")
    data[first_pixel + 3] = 255
    used = decode_image(bytes(data))
    assert used.getpixel((0, used.height - 1)) != (255, 255, 255) == used.getpixel((0, 0))


def test_a_png_that_is_transparent_everywhere_is_white() -> None:
    assert decode_image(encoded(Image.new("RGBA", (4, 4), (10, 20, 30, 0)))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("after", [False, True])
def test_a_png_with_megabytes_of_compressed_text_is_read(kind: bytes, after: bool) -> None:
    plain = encoded(picture(0), pnginfo=orientation_text())
    text = zlib.compress(b"node " * 1_000_000)
    prefix = b"workflow\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0")
    place = len(plain) - 12 if after else 33
    data = plain[:place] + png_chunk(kind, prefix + text) + plain[place:]
    assert same(decode_image(data), decode_image(plain))
    assert decode_image(data).size == (40, 48)


def orientation_text() -> PngInfo:
    """Return uncompressed XMP that rotates the image by 90 degrees."""
    note = PngInfo()
    note.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    return note


@pytest.mark.parametrize("name", ["comfy_zTXt.png", "no_eoi.jpg"])
def test_case_files_are_read(name: str) -> None:
    assert np.abs(pixels(decode_image(case(name))) - pixels(Image.open(CAT))).mean() < 4


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}], ids=str)
@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
@pytest.mark.parametrize("marker_bytes", [1, 2])
def test_a_jpeg_may_lack_its_end_marker(options: dict[str, object], kind: str, marker_bytes: int) -> None:
    photo = encoded(picture(3, 200, 160), kind, **options)
    assert same(decode_image(photo[:-marker_bytes]), decode_image(photo))
    assert same(decode_image(photo[:-marker_bytes], 10), decode_image(photo, 10))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [20, 200, 2000])
def test_a_jpeg_that_lacks_pixels_is_damaged(progressive: bool, missing: int) -> None:
    photo = encoded(Image.open(CAT), "JPEG", progressive=progressive)
    with pytest.raises(ImageError, match="damaged or incomplete: image file is truncated"):
        decode_image(photo[:-missing])
