import struct
from functools import cache
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.images.errors import MAX_READS
from service.errors import STATUS, Code, ServiceError
from service.inference.decoder import (
    MAX_SCANS,
    QUICK_FORMATS,
    SMALL_FILE,
    Decoder,
)
from tests.models.images.test_encoded import KINDS, png, png_chunk
from tests.models.images.test_profiles import DISPLAY_P3
from tests.service.parts import encoded, picture

DECODER = Decoder(max_pixels=1_000_000, max_memory=64 << 20)

START_OF_SCAN = b"\xff\xda"


def decode(data: bytes, decoder: Decoder = DECODER, shorter_side: int = 0) -> Image.Image:
    with decoder.decode(data, shorter_side) as image:
        return image


def refusal(data: bytes, decoder: Decoder = DECODER) -> Code:
    with pytest.raises(ServiceError) as caught:
        decode(data, decoder)
    return caught.value.code


@pytest.mark.parametrize(
    "data", [b"hello, I am text", b"", b"\x00" * 100, b"%PDF-1.7", b"\0\0\0\x18ftypisom", b"<svg></svg>"]
)
def test_not_an_image(data: bytes) -> None:
    assert refusal(data) == Code.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA"])
def test_other_formats_are_not_opened(kind: str) -> None:
    assert refusal(encoded(picture(0), kind)) == Code.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    data = encoded(picture(0, 200, 200), kind)
    assert refusal(data[: int(share * len(data))]) == Code.DAMAGED_IMAGE


@pytest.mark.parametrize("side", [1001, 9_000, 15_000, 2_000_000_000])
def test_too_many_pixels_are_refused_by_the_header(side: int) -> None:
    """The file has no pixels. Decoding them would return damaged_image."""
    assert refusal(png(side, side, 8, 2, b"")) == Code.IMAGE_TOO_LARGE


def test_too_large_webp_canvas_is_refused_by_the_header() -> None:
    canvas = b"\x10\0\0\0" + (16383 - 1).to_bytes(3, "little") * 2
    data = b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    assert refusal(b"RIFF" + struct.pack("<I", len(data)) + data) == Code.IMAGE_TOO_LARGE


STARTS = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a", b"RIFF\x50\0\0\0WEBPVP8 ")
BOXES_AND_TAGS = (b"\0\0\0\x10ftypavif\0\0\0\0", b"\0\0\0\x10ftypheic\0\0\0\0", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08")


@cache
def intact(kind: str) -> bytes:
    return encoded(picture(5), kind)


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
def test_a_damaged_image_is_decoded_or_refused(kind: str, places: list[tuple[int, int]], cut: int) -> None:
    data = damage(intact(kind), places)
    try:
        image = decode(data[: max(1, len(data) - cut)])
    except ServiceError as error:
        assert STATUS[error.code] in (400, 413, 415)
    else:
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= DECODER.max_pixels


@settings(deadline=None, max_examples=150)
@given(
    start=st.sampled_from([*STARTS, *BOXES_AND_TAGS]),
    rest=st.binary(max_size=300),
)
def test_random_bytes_are_refused(start: bytes, rest: bytes) -> None:
    try:
        decode(start + rest)
    except ServiceError as error:
        assert STATUS[error.code] in (400, 413, 415)


@pytest.mark.parametrize("kind", QUICK_FORMATS)
def test_a_small_image_has_the_same_pixels(kind: str) -> None:
    data = encoded(picture(0, 30, 20), kind)
    image = DECODER.decode_small(data)
    assert image is not None
    assert image.tobytes() == decode(data).tobytes()


def test_an_image_that_takes_long_is_not_decoded_as_small() -> None:
    note = PngInfo()
    note.add_text("k", "a" * 500_000, zip=True)
    unfolds = encoded(picture(0, 30, 20), "PNG", pnginfo=note)
    wide = encoded(Image.new("RGB", (1000, 1000)), "PNG")
    long = encoded(picture(0), "BMP")
    assert len(unfolds) < SMALL_FILE > len(wide)
    slow = [encoded(picture(0, 30, 20), kind) for kind in ("AVIF", "HEIF", "TIFF")]
    coloured = encoded(picture(0, 30, 20), "JPEG", icc_profile=DISPLAY_P3)
    assert max(map(len, [*slow, coloured])) < SMALL_FILE
    for data in (unfolds, wide, long, *slow, coloured):
        assert DECODER.decode_small(data) is None
        decode(data)


def test_a_damaged_small_image_is_refused() -> None:
    with pytest.raises(ServiceError) as caught:
        DECODER.decode_small(encoded(picture(0, 30, 20))[:-30])
    assert caught.value.code == Code.DAMAGED_IMAGE


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_with_too_many_scans_is_refused(kind: str) -> None:
    more = {"save_all": True, "append_images": [picture(1)]} if kind == "MPO" else {}
    progressive = encoded(picture(0), kind, progressive=True, **more)
    assert Image.open(BytesIO(progressive)).format == kind
    last = progressive.rindex(START_OF_SCAN)
    bomb = progressive[:-2] + progressive[last:-2] * MAX_SCANS + progressive[-2:]
    assert refusal(bomb) == Code.IMAGE_TOO_LARGE
    # The data that a phone appends to a photo contains the marker by chance.
    assert decode(encoded(picture(0), "JPEG") + START_OF_SCAN * 10 * MAX_SCANS).size == picture(0).size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG, pixels"])
def test_a_file_in_very_many_pieces_is_refused(kind: str) -> None:
    complete = encoded(picture(0), kind[:4].rstrip(","))
    if kind == "JPEG":
        made = complete[:2] + b"\xff\xe5\x00\x02" * MAX_READS + complete[2:]
    else:
        at = complete.index(b"IDAT") - 4
        many = png_chunk(b"prVt" if kind == "PNG" else b"IDAT") * MAX_READS
        made = complete[:at] + many + complete[at:]
    with pytest.raises(ServiceError, match="in more than 100,000 pieces; save it again") as caught:
        decode(made)
    assert caught.value.code == Code.DAMAGED_IMAGE
