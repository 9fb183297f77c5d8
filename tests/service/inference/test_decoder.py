import struct
import subprocess
import sys
import threading
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.errors import STATUS, Code, ServiceError
from service.inference.decoder import (
    BYTES_PER_PIXEL,
    BYTES_PER_PIXEL_WEBP,
    MAX_READS,
    MAX_SCANS,
    SMALL_FILE,
    TURNS,
    DecodeMemory,
    Decoder,
)
from tests.service.parts import encoded, picture, until

DECODER = Decoder(max_pixels=1_000_000, max_memory=64 << 20)
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
START_OF_SCAN = b"\xff\xda"


def decode(data: bytes, decoder: Decoder = DECODER, shorter_side: int = 0) -> Image.Image:
    with decoder.decode(data, shorter_side) as image:
        return image


def pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(image).astype(np.int64)


def refusal(data: bytes, decoder: Decoder = DECODER) -> Code:
    with pytest.raises(ServiceError) as caught:
        decode(data, decoder)
    return caught.value.code


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_shows_the_picture(kind: str) -> None:
    image = decode(encoded(picture(0), kind))
    assert (image.mode, image.size) == ("RGB", (48, 40))
    assert np.abs(pixels(image) - pixels(picture(0))).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = picture(1, 48, 32)
    # What a camera would have stored for the viewer to turn.
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = undo.get(orientation, TURNS.get(orientation))
    stored = upright.transpose(turn) if turn is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(stored, kind, exif=exif, quality=95))
    assert image.size == upright.size
    assert np.abs(pixels(image) - pixels(upright)).mean() < 12


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\xff\xff\x01\x12", b"no exif"])
def test_damaged_exif_asks_for_no_turn(kind: str, exif: bytes) -> None:
    assert decode(encoded(picture(2), kind, exif=exif)).size == (48, 40)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_shows_white(kind: str) -> None:
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    decoded = decode(encoded(image, kind, lossless=True))
    assert decoded.getpixel((6, 4)) == (255, 255, 255)
    assert decoded.getpixel((1, 4)) == (0, 0, 255)


def test_half_transparent_is_half_white() -> None:
    decoded = decode(encoded(Image.new("LA", (4, 4), (0, 128))))
    assert decoded.getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_colour_of_a_palette_shows_white(kind: str) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 1), 1)
    decoded = decode(encoded(image, kind, transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 1)) == (200, 100, 0)


def test_16_bit_grey_keeps_its_shades() -> None:
    shades = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    decoded = pixels(decode(encoded(Image.fromarray(shades))))
    assert np.array_equal(decoded[0, :, 0], np.arange(256))


def test_16_bit_colour() -> None:
    colour = struct.pack(">3H", 0xFFFF, 0x8000, 0x0000)
    assert decode(png(2, 2, 16, 2, (b"\0" + colour * 2) * 2)).getpixel((1, 1)) == (255, 128, 0)


def test_cmyk() -> None:
    red, green, blue = pixels(decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")))[8, 8]
    assert red > 200
    assert max(green, blue) < 50


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_other_modes(mode: str) -> None:
    assert decode(encoded(picture(0).convert(mode))).mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert decode(data).getpixel((4, 4)) == (255, 0, 0)


def test_phone_photo_of_several_pictures() -> None:
    """Phones append a second JPEG, which Pillow calls MPO."""
    assert decode(encoded(picture(0), "MPO", save_all=True, append_images=[picture(1)])).size == (48, 40)


def test_large_jpeg_is_decoded_smaller_but_never_too_small() -> None:
    data = encoded(picture(3, 900, 700), "JPEG")
    assert decode(data, shorter_side=32).size == (225, 175)
    assert decode(data, shorter_side=175).size == (900, 700)


@pytest.mark.parametrize(
    "data", [b"hello, I am text", b"", b"\x00" * 100, b"%PDF-1.7", b"II*\x00" + b"\x00" * 50, b"<svg></svg>"]
)
def test_not_an_image(data: bytes) -> None:
    assert refusal(data) == Code.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "TGA"])
def test_other_formats_are_not_opened(kind: str) -> None:
    assert refusal(encoded(picture(0), kind)) == Code.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_cut_short(kind: str, share: float) -> None:
    data = encoded(picture(0, 200, 200), kind)
    assert refusal(data[: int(share * len(data))]) == Code.DAMAGED_IMAGE


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [1001, 9_000, 15_000, 2_000_000_000])
def test_too_many_pixels_are_refused_by_the_header(side: int) -> None:
    """The pixels themselves are missing: had they been decoded, the answer would be damaged_image."""
    assert refusal(png(side, side, 8, 2, b"")) == Code.IMAGE_TOO_LARGE


def test_too_large_webp_canvas_is_refused_by_the_header() -> None:
    canvas = b"\x10\0\0\0" + (16383 - 1).to_bytes(3, "little") * 2
    data = b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    assert refusal(b"RIFF" + struct.pack("<I", len(data)) + data) == Code.IMAGE_TOO_LARGE


def test_memory_bounds_the_pixels_too() -> None:
    decoder = Decoder(max_pixels=1_000_000, max_memory=100 * BYTES_PER_PIXEL)
    assert decode(encoded(picture(0, 10, 10)), decoder).size == (10, 10)
    assert refusal(encoded(picture(0, 11, 10)), decoder) == Code.IMAGE_TOO_LARGE


def test_compressed_text_in_a_png_does_not_swell(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    image = encoded(picture(0))
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 200_000_000))
    (tmp_path / "bomb").write_bytes(image[:33] + bomb + image[33:])
    (tmp_path / "small").write_bytes(image)
    assert peak(tmp_path / "bomb", tmp_path / "small") < 20_000_000


def damage(data: bytes, places: list[tuple[int, int]]) -> bytes:
    broken = bytearray(data)
    for place, value in places:
        broken[place % len(broken)] = value
    return bytes(broken)


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    places=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=20),
    cut=st.integers(0, 10_000),
)
def test_damaged_images_are_answered_whatever_they_hold(kind: str, places: list[tuple[int, int]], cut: int) -> None:
    data = damage(encoded(picture(5), kind), places)
    try:
        image = decode(data[: max(1, len(data) - cut)])
    except ServiceError as error:
        assert STATUS[error.code] in (400, 413, 415)
    else:
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= DECODER.max_pixels


@settings(deadline=None, max_examples=150)
@given(
    start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a", b"RIFF\x50\0\0\0WEBPVP8 "]),
    rest=st.binary(max_size=300),
)
def test_random_bytes_are_refused(start: bytes, rest: bytes) -> None:
    try:
        decode(start + rest)
    except ServiceError as error:
        assert STATUS[error.code] in (400, 413, 415)


def test_large_image_is_not_starved_by_small_ones() -> None:
    memory = DecodeMemory(10)
    order: list[str] = []
    small_holds, release = threading.Event(), threading.Event()

    def first_small() -> None:
        with memory.hold(4):
            small_holds.set()
            release.wait(10)

    def wait_for(size: int, name: str) -> None:
        with memory.hold(size):
            order.append(name)

    threads = [threading.Thread(target=first_small)]
    threads[0].start()
    small_holds.wait(10)
    threads.append(threading.Thread(target=wait_for, args=(10, "large")))
    threads[-1].start()
    until(memory.turn.locked)
    threads.append(threading.Thread(target=wait_for, args=(1, "small")))
    threads[-1].start()
    threads[-1].join(0.1)  # In which it would be done, if it did not wait for the large one.
    assert not order
    release.set()
    for thread in threads:
        thread.join(10)
    assert order == ["large", "small"]
    assert memory.free == 10


def test_memory_is_held_as_long_as_the_image() -> None:
    decoder = Decoder(1_000_000, 1 << 20)
    with decoder.decode(encoded(picture(0, 10, 10))):
        assert decoder.memory.free == (1 << 20) - 100 * BYTES_PER_PIXEL
    assert decoder.memory.free == 1 << 20


def test_memory_is_given_back_after_a_failure() -> None:
    memory = DecodeMemory(10)
    with pytest.raises(ValueError, match="x"), memory.hold(10):
        raise ValueError("x")
    assert memory.free == 10


PEAK = """
import sys
from contextlib import suppress
from pathlib import Path
from service.inference.decoder import Decoder
from service.errors import ServiceError

def memory(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

decoder = Decoder(40_000_000, 1 << 30)
data, small = (Path(name).read_bytes() for name in sys.argv[1:])
with decoder.decode(small):
    pass
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
with suppress(ServiceError), decoder.decode(data):
    pass
print((memory("VmHWM") - before) * 1024)
"""


def peak(file: Path, small: Path) -> int:
    """Return the bytes that decoding ``file`` takes at most, in a process that decoded ``small`` before."""
    ran = subprocess.run([sys.executable, "-c", PEAK, file, small], check=True, capture_output=True, text=True)
    return int(ran.stdout)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGBA", {"compress_level": 1}),
        ("PNG", "I;16", {"compress_level": 1}),
        ("JPEG", "CMYK", {"progressive": True, "subsampling": 0}),
        ("WEBP", "RGBA", {"quality": 10, "method": 0}),
        ("GIF", "P", {}),
    ],
)
def test_decoding_takes_no_more_memory_than_it_is_counted_for(
    tmp_path_factory: pytest.TempPathFactory, kind: str, mode: str, options: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("peak")
    exif = Image.Exif()
    exif[0x0112] = 6
    extra = options | ({"exif": exif} if kind != "GIF" else {})
    for name, side in (("large", 3000), ("small", 16)):
        if mode == "I;16":
            image = Image.fromarray(np.arange(side * side, dtype=np.uint32).reshape(side, side).astype(np.uint16))
        else:
            image = Image.new(mode, (side, side))
        (folder / name).write_bytes(encoded(image, kind, **extra))
    allowed = BYTES_PER_PIXEL_WEBP if kind == "WEBP" else BYTES_PER_PIXEL
    assert 3 * 3000 * 3000 < peak(folder / "large", folder / "small") <= 3000 * 3000 * allowed


@pytest.mark.parametrize("kind", KINDS)
def test_small_image_is_the_same_decoded_at_once(kind: str) -> None:
    data = encoded(picture(0, 30, 20), kind)
    image = DECODER.decode_small(data)
    assert image is not None
    assert image.tobytes() == decode(data).tobytes()


def test_what_takes_long_is_not_decoded_at_once() -> None:
    note = PngInfo()
    note.add_text("k", "a" * 500_000, zip=True)
    unfolds = encoded(picture(0, 30, 20), "PNG", pnginfo=note)
    wide = encoded(Image.new("RGB", (1000, 1000)), "PNG")
    long = encoded(picture(0), "BMP")
    assert len(unfolds) < SMALL_FILE > len(wide)
    for data in (unfolds, wide, long):
        assert DECODER.decode_small(data) is None
        decode(data)


def test_damage_shows_in_small_images_too() -> None:
    with pytest.raises(ServiceError) as caught:
        DECODER.decode_small(encoded(picture(0, 30, 20))[:-30])
    assert caught.value.code == Code.DAMAGED_IMAGE


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_that_is_gone_through_again_and_again_is_refused(kind: str) -> None:
    more = {"save_all": True, "append_images": [picture(1)]} if kind == "MPO" else {}
    progressive = encoded(picture(0), kind, progressive=True, **more)
    assert Image.open(BytesIO(progressive)).format == kind
    last = progressive.rindex(START_OF_SCAN)
    bomb = progressive[:-2] + progressive[last:-2] * MAX_SCANS + progressive[-2:]
    assert refusal(bomb) == Code.IMAGE_TOO_LARGE
    # In what a phone appends to a photo the marker stands by chance now and then.
    assert decode(encoded(picture(0), "JPEG") + START_OF_SCAN * 10 * MAX_SCANS).size == picture(0).size


def chunk(kind: bytes) -> bytes:
    return struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG, pixels"])
def test_a_file_in_very_many_pieces_is_refused(kind: str) -> None:
    whole = encoded(picture(0), kind[:4].rstrip(","))
    if kind == "JPEG":
        made = whole[:2] + b"\xff\xe5\x00\x02" * MAX_READS + whole[2:]
    else:
        at = whole.index(b"IDAT") - 4
        many = chunk(b"prVt" if kind == "PNG" else b"IDAT") * MAX_READS
        made = whole[:at] + many + whole[at:]
    with pytest.raises(ServiceError, match="in more than 100,000 pieces; save it again") as caught:
        decode(made)
    assert caught.value.code == Code.DAMAGED_IMAGE


def test_an_image_that_is_being_decoded_is_known() -> None:
    decoder = Decoder(10_000, 1 << 20)
    with decoder.decode(encoded(picture(0))):
        assert decoder.busy
    assert not decoder.busy
