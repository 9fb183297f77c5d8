"""TIFFs that are divided into very many parts, or into very large ones."""

import struct
from io import BytesIO

import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from models.images.encoded import EncodedImage, decode_image
from models.images.errors import MAX_READS, TooManyPieces
from tests.service.parts import encoded, picture

STRIP_OFFSETS, BITS_PER_SAMPLE, TILE_WIDTH, TILE_LENGTH, EXIF = 273, 258, 322, 323, 34665
BYTE, SHORT, LONG = 1, 3, 4


def tiff_of(tags: dict[int, tuple[int, bytes]], big: bool = False) -> bytes:
    """Return a grey TIFF of 16 x 16 pixels with additional tags, by type and values."""
    number = struct.Struct("<Q" if big else "<I")
    tags = {256: (SHORT, b"\x10\0"), 257: (SHORT, b"\x10\0"), 258: (SHORT, b"\x08\0"), 262: (SHORT, b"\1\0")} | tags
    sizes = {BYTE: 1, SHORT: 2, LONG: 4}
    header = b"II+\0\x08\0\0\0" + number.pack(16) if big else b"II*\0" + number.pack(8)
    directory = struct.pack("<Q" if big else "<H", len(tags))
    place = len(header) + len(directory) + len(tags) * (4 + 2 * number.size) + number.size
    content = b""
    for tag, (kind, value) in sorted(tags.items()):
        directory += struct.pack("<HH", tag, kind) + number.pack(len(value) // sizes[kind])
        if len(value) <= number.size:
            directory += value.ljust(number.size, b"\0")
        else:
            directory += number.pack(place + len(content))
            content += value
    return header + directory + number.pack(0) + content


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", [BYTE, SHORT, LONG])
@pytest.mark.parametrize("tag", [STRIP_OFFSETS, BITS_PER_SAMPLE])
def test_a_tiff_with_very_many_numbers_is_refused(tag: int, kind: int, big: bool) -> None:
    size = {BYTE: 1, SHORT: 2, LONG: 4}[kind]
    data = tiff_of({STRIP_OFFSETS: (LONG, b"\x08\0\0\0"), tag: (kind, b"\1" * size * (MAX_READS + 1))}, big)
    if (tag, kind) == (BITS_PER_SAMPLE, BYTE):  # Pillow keeps these as bytes.
        EncodedImage(tiff_of({STRIP_OFFSETS: (LONG, b"\x08\0\0\0")}, big))
    else:
        with pytest.raises(TooManyPieces):
            EncodedImage(data)


def test_an_exif_directory_with_very_many_numbers_is_refused() -> None:
    data = tiff_of({STRIP_OFFSETS: (LONG, b"\x08\0\0\0"), EXIF: (LONG, b"\0\0\0\0")})
    inner = struct.pack("<HHHII", 1, 0x9000, SHORT, MAX_READS + 1, len(data) + 18) + b"\0" * 4
    place = data.index(struct.pack("<HHI", EXIF, LONG, 1)) + 8
    data = data[:place] + struct.pack("<I", len(data)) + data[place + 4 :]
    with pytest.raises(TooManyPieces):
        EncodedImage(data + inner + b"\1\0" * (MAX_READS + 1))


@pytest.mark.parametrize("big", [False, True])
def test_the_size_of_tiles_is_known_before_they_are_decoded(big: bool) -> None:
    sides = {TILE_WIDTH: (LONG, struct.pack("<I", 9000)), TILE_LENGTH: (SHORT, struct.pack("<H", 8000))}
    image = EncodedImage(tiff_of({324: (LONG, b"\x08\0\0\0")} | sides, big))
    assert (image.full_size, image.hidden_size) == ((16, 16), (9000, 8000))


def test_a_large_tiff_of_one_row_a_strip_is_read() -> None:
    photo = picture(0, 40, 3000)
    tags = ImageFileDirectory_v2()
    tags[278] = 1  # RowsPerStrip
    data = encoded(photo, "TIFF", tiffinfo=tags, strip_size=1)
    assert len(Image.open(BytesIO(data)).tag_v2[STRIP_OFFSETS]) == 3000  # type: ignore[attr-defined]
    assert decode_image(data).tobytes() == photo.tobytes()
