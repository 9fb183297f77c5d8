"""AVIF and HEIF files whose content differs from their header, or that have very many parts."""

import struct
from collections.abc import Sequence
from functools import cache

import pytest
from PIL import Image

from models.images.boxes import MAX_ITEMS, largest_picture
from models.images.encoded import EncodedImage, decode_image
from models.images.errors import MAX_EXIF, MAX_READS, ImageError, TooManyPieces
from service.errors import Code
from service.inference.decoder import Decoder, memory_of
from tests.service.inference.test_decoder import refusal
from tests.service.parts import encoded, picture

SIZE = (320, 200)
KINDS = ("AVIF", "HEIF")
Item = tuple[bytes, bytes, tuple[int, ...]]
"""Type, data, and the numbers of its properties from 1."""


@cache
def photo(kind: str) -> bytes:
    return encoded(picture(0, *SIZE), kind)


def box(kind: bytes, *content: bytes) -> bytes:
    file = b"".join(content)
    return struct.pack(">I4s", len(file) + 8, kind) + file


def found_box(data: bytes, kind: bytes) -> bytes:
    place = data.index(kind) - 4
    return data[place : place + int.from_bytes(data[place : place + 4])]


def picture_size(width: int, height: int) -> bytes:
    return box(b"ispe", struct.pack(">III", 0, width, height))


def heif_of(properties: list[bytes], items: Sequence[Item], references: bytes = b"", layout: int = 0x4400) -> bytes:
    """Return a HEIF file whose primary item is the first; ``layout`` is the field of sizes in ``iloc``."""
    entries = b"".join(
        box(b"infe", struct.pack(">IHH4s", 2 << 24, number, 0, kind), b"\0")
        for number, (kind, *_) in enumerate(items, 1)
    )
    extents, associations, place = b"", b"", 0
    for number, (_, data, wanted) in enumerate(items, 1):
        extents += struct.pack(">HHHHII", number, 1, 0, 1, place, len(data))
        associations += struct.pack(">HB", number, len(wanted)) + bytes(0x80 | each for each in wanted)
        place += len(data)
    count = struct.pack(">H", len(items))
    meta = box(
        b"meta",
        bytes(4),
        box(b"hdlr", bytes(8), b"pict", bytes(13)),
        box(b"pitm", struct.pack(">IH", 0, 1)),
        box(b"iinf", bytes(4), count, entries),
        references,
        box(b"iprp", box(b"ipco", *properties), box(b"ipma", struct.pack(">II", 0, len(items)), associations)),
        box(b"idat", *(data for _, data, _ in items)),
        box(b"iloc", struct.pack(">IH", 1 << 24, layout), count, extents),
    )
    return box(b"ftyp", b"heic", bytes(4), b"mif1heic") + meta


def coded() -> tuple[list[bytes], bytes]:
    """Return the properties and the data of a HEIF picture of SIZE."""
    data = photo("HEIF")
    return [found_box(data, b"hvcC"), picture_size(*SIZE)], found_box(data, b"mdat")[8:]


def references(kind: bytes, pairs: list[tuple[int, int]]) -> bytes:
    return box(b"iref", bytes(4), *(box(kind, struct.pack(">HHH", source, 1, to)) for source, to in pairs))


def declare(data: bytes, width: int, height: int) -> bytes:
    assert picture_size(*SIZE) in data
    return data.replace(picture_size(*SIZE), picture_size(width, height))


def test_a_file_of_these_boxes_is_read() -> None:
    properties, data = coded()
    file = heif_of(properties, [(b"hvc1", data, (1, 2))])
    assert decode_image(file).tobytes() == decode_image(photo("HEIF")).tobytes()
    assert EncodedImage(file).hidden_size == SIZE


def test_a_small_part_of_a_large_picture_counts_as_the_picture() -> None:
    properties, data = coded()
    part = box(b"clap", struct.pack(">8I", 16, 1, 8, 1, 0, 1, 0, 1))
    file = heif_of([*properties, part], [(b"hvc1", data, (1, 2, 3))])
    image = EncodedImage(file)
    assert (image.full_size, image.hidden_size) == ((16, 8), SIZE)
    assert memory_of(image) >= SIZE[0] * SIZE[1] * 10
    assert refusal(file, Decoder(1000, 1 << 24)) == Code.IMAGE_TOO_LARGE


def test_the_real_size_of_an_av1_picture_counts_not_the_declared_one() -> None:
    data = declare(photo("AVIF"), 16, 10)
    image = EncodedImage(data)
    assert (image.full_size, image.hidden_size) == ((16, 10), SIZE)
    assert refusal(data, Decoder(1000, 1 << 24)) == Code.IMAGE_TOO_LARGE


def test_the_real_size_of_the_frames_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:], speed=10)
    assert EncodedImage(data).image.n_frames == 3  # type: ignore[attr-defined]
    assert largest_picture(declare(data.replace(b"meta", b"free", 1), 16, 10)) == SIZE


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_declared_too_large_is_refused_by_its_header(kind: str) -> None:
    assert refusal(declare(photo(kind), 9000, 9000)) in (Code.IMAGE_TOO_LARGE, Code.DAMAGED_IMAGE)
    assert refusal(declare(photo(kind), 30_000, 30_000)) == Code.IMAGE_TOO_LARGE


def test_a_heif_picture_larger_than_declared_is_refused() -> None:
    assert refusal(declare(photo("HEIF"), 32, 20)) == Code.DAMAGED_IMAGE


def test_a_file_of_too_many_items_is_refused() -> None:
    properties, data = coded()
    items = [(b"hvc1", data, (1, 2))] * 2 + [(b"hvc1", b"", (1, 2))] * (MAX_ITEMS - 1)
    with pytest.raises(ImageError, match="more than 1,000 parts"):
        EncodedImage(heif_of(properties, items))


def test_a_file_of_too_many_extents_is_refused() -> None:
    properties, data = coded()
    file = heif_of(properties, [(b"hvc1", data, (1, 2))], layout=0)
    count = file.index(b"iloc") + 10
    # Two items of 65,535 extents each, which have no bytes.
    most = b"\xff\xff"
    endless = b"\0\2" + file[count + 2 : count + 8] + most + bytes(6) + most
    with pytest.raises(TooManyPieces):
        EncodedImage(file[:count] + endless + file[count + len(endless) :])


@pytest.mark.parametrize("kind", KINDS)
def test_a_very_long_exif_block_is_refused(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a" * MAX_EXIF
    with pytest.raises(ImageError, match="EXIF block of more than 1 MiB"):
        EncodedImage(encoded(picture(0), kind, exif=exif.tobytes()))


def test_metadata_that_many_pictures_would_copy_is_refused() -> None:
    properties, data = coded()
    pictures = [(b"hvc1", data, (1, 2))] * 70
    metadata: Item = (b"mime", b"application/rdf+xml\0".ljust(1 << 20), ())
    shared = references(b"cdsc", [(71, number) for number in range(1, 71)])
    with pytest.raises(ImageError, match="too much metadata"):
        EncodedImage(heif_of(properties, [*pictures, metadata], shared))


def test_a_colour_profile_that_many_pictures_would_copy_is_refused() -> None:
    properties, data = coded()
    profile = box(b"colr", b"prof", bytes(1 << 20))
    with pytest.raises(ImageError, match="too much metadata"):
        EncodedImage(heif_of([*properties, profile], [(b"hvc1", data, (1, 2, 3))] * 70))


@pytest.mark.parametrize("table", [b"stsz", b"stco"])
def test_an_animation_of_too_many_frames_is_refused(table: bytes) -> None:
    frames = [picture(number) for number in range(3)]
    data = bytearray(encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:], speed=10))
    count = data.index(table) + (12 if table == b"stsz" else 8)
    data[count : count + 4] = struct.pack(">I", MAX_READS + 1)
    with pytest.raises(TooManyPieces):
        EncodedImage(bytes(data))


def test_deeply_nested_boxes_are_not_followed() -> None:
    nested = picture_size(*SIZE)
    for _ in range(1000):
        nested = box(b"moov", nested)
    assert largest_picture(nested) == (0, 0)
    assert largest_picture(box(b"moov", box(b"trak", picture_size(*SIZE)))) == SIZE


def test_a_file_of_very_many_boxes_is_refused() -> None:
    with pytest.raises(TooManyPieces):
        largest_picture(box(b"free") * (MAX_READS + 1))


def test_av1_units_that_have_no_end_are_refused() -> None:
    item: Item = (b"av01", b"\x12\0" * (MAX_READS + 1), ())
    with pytest.raises(TooManyPieces):
        EncodedImage(heif_of([picture_size(*SIZE)], [item]))
