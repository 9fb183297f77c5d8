"""Check the pictures and metadata of AVIF and HEIF files before a decoder opens them.

Both are files of boxes (ISO/IEC 14496-12). A box has a length, a type of four letters, and content, which may be boxes.
Their pictures and blocks of metadata are "items" (ISO/IEC 23008-12). The frames of animations are samples of tracks.
The decoders' own limits are far above ours.
"""

from collections.abc import Callable, Iterator
from math import prod

from models.images.av1 import coded_size
from models.images.errors import MAX_EXIF, MAX_READS, ImageError, TooManyPieces

FILE_TYPE = b"ftyp"
MAX_DEPTH = 8
MAX_ITEMS = 1000
"""The largest number of items.

Photos have some hundred: tiles, smaller pictures and metadata. libheif has the same limit.
"""
MAX_COPIED = 64 << 20
"""In bytes. Each picture of a HEIF file is opened with a copy of the file's colour profiles and metadata."""


class Fields:
    """Reads the numbers of a box one after another. Numbers after its end are 0."""

    def __init__(self, data: bytes, place: int, end: int) -> None:
        self.data, self.place, self.end = data, place, end

    def read(self, size: int) -> int:
        number = int.from_bytes(self.data[self.place : min(self.place + size, self.end)])
        self.place += size
        return number


class Track:
    """The places of the first samples of a track's chunks, and the length of its first sample."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.sizes: list[int] = []


class Contents:
    """The items and tracks of a file, from its boxes.

    Raises TooManyPieces or ImageError if there are too many parts or too much data.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.boxes = 0
        self.sizes: list[tuple[int, int]] = []
        self.item_types: dict[int, bytes] = {}
        self.extents: list[tuple[int, bool, int, int]] = []
        self.inner_data = 0
        self.shown = 0
        self.profile_bytes = 0
        self.tracks: list[Track] = []
        self.read_boxes(0, len(data), 0)

    def read_boxes(self, start: int, end: int, depth: int) -> None:
        for kind, box in boxes(self.data, start, end):
            self.boxes += 1
            if self.boxes > MAX_READS:
                raise TooManyPieces
            if kind in CONTAINERS:
                box.read(CONTAINERS[kind])
                if kind == b"iinf":
                    box.read(2 if self.data[box.place - 4] == 0 else 4)
                if kind == b"trak":
                    self.tracks.append(Track())
                if depth < MAX_DEPTH:
                    self.read_boxes(box.place, box.end, depth + 1)
            elif kind in READERS:
                READERS[kind](self, box)

    def read_picture_size(self, box: Fields) -> None:
        box.read(4)
        self.sizes.append((box.read(4), box.read(4)))

    def read_profile(self, box: Fields) -> None:
        self.profile_bytes += box.end - box.place

    def read_item(self, box: Fields) -> None:
        version, flags = box.read(1), box.read(3)
        number = box.read(2 if version < 3 else 4)
        box.read(2)
        self.item_types[number] = box.read(4).to_bytes(4)
        self.shown += not flags & 1
        if len(self.item_types) > MAX_ITEMS:
            raise ImageError(f"it has more than {MAX_ITEMS:,} parts; save it again")

    def read_extents(self, box: Fields) -> None:
        version = box.read(4) >> 24
        sizes = box.read(2)
        offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        number_size = 2 if version < 2 else 4
        for _ in range(box.read(number_size)):
            number = box.read(number_size)
            is_inner = bool(version and box.read(2) & 15 == 1)
            box.read(2)
            base = box.read(base_size)
            for _ in range(box.read(2)):
                box.read(index_size if version else 0)
                self.extents.append((number, is_inner, base + box.read(offset_size), box.read(length_size)))
                if len(self.extents) > MAX_READS:
                    raise TooManyPieces

    def read_inner_data(self, box: Fields) -> None:
        self.inner_data = box.place

    def read_sample_sizes(self, box: Fields) -> None:
        box.read(4)
        size, count = box.read(4), box.read(4)
        if count > MAX_READS:
            raise TooManyPieces
        self.track().sizes.append(size or box.read(4))

    def read_chunk_places(self, box: Fields, size: int = 4) -> None:
        box.read(4)
        if box.read(4) > MAX_READS:
            raise TooManyPieces
        self.track().places.append(box.read(size))

    def read_large_chunk_places(self, box: Fields) -> None:
        self.read_chunk_places(box, 8)

    def track(self) -> Track:
        return self.tracks[-1] if self.tracks else Track()

    def items(self, *kinds: bytes) -> dict[int, bytes]:
        """Return the data of the items of these types."""
        pieces: dict[int, list[bytes]] = {}
        left = max(MAX_COPIED, len(self.data))
        for number, is_inner, offset, length in self.extents:
            if self.item_types.get(number) in kinds:
                start = offset + is_inner * self.inner_data
                piece = self.data[start : start + length if length else None]
                left -= len(piece)
                if left < 0:
                    raise TooManyPieces
                pieces.setdefault(number, []).append(piece)
        return {number: b"".join(found) for number, found in pieces.items()}

    def frames(self) -> list[bytes]:
        """Return the data of the tracks' first samples."""
        return [
            self.data[place : place + max(track.sizes, default=0)] for track in self.tracks for place in track.places
        ]


PLAIN_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"iprp", b"ipco")
CONTAINERS = {b"meta": 4, b"iinf": 4} | dict.fromkeys(PLAIN_CONTAINERS, 0)
"""Boxes that contain boxes, and the number of bytes before the inner boxes."""
READERS: dict[bytes, Callable[[Contents, Fields], None]] = {
    b"ispe": Contents.read_picture_size,
    b"colr": Contents.read_profile,
    b"infe": Contents.read_item,
    b"iloc": Contents.read_extents,
    b"idat": Contents.read_inner_data,
    b"stsz": Contents.read_sample_sizes,
    b"stco": Contents.read_chunk_places,
    b"co64": Contents.read_large_chunk_places,
}


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, Fields]]:
    """Yield type and content of each box between two places."""
    while start + 8 <= end:
        head = Fields(data, start, end)
        length, kind = head.read(4), head.read(4).to_bytes(4)
        if length == 1:
            length = head.read(8)
        stop = end if length == 0 else start + length
        if stop < head.place or stop > end:
            return
        yield kind, Fields(data, head.place, stop)
        start = stop


def largest_picture(data: bytes) -> tuple[int, int]:
    """Return width and height of the largest picture of an AVIF or HEIF file.

    An image may show a part of a picture, or show it at a smaller size. libheif decodes no picture that is larger than
    declared. libavif does, so the size is also read from the pictures of an AVIF file.

    Raises ImageError if the file has too many parts, or too much metadata.
    """
    contents = Contents(data)
    metadata = contents.items(b"Exif", b"mime", b"uri ")
    if any(len(found) > MAX_EXIF for number, found in metadata.items() if contents.item_types[number] == b"Exif"):
        raise ImageError(f"it has an EXIF block of more than {MAX_EXIF >> 20} MiB; save it again")
    copied = contents.profile_bytes + sum(map(len, metadata.values()))
    if copied * contents.shown > MAX_COPIED:
        raise ImageError("it has too much metadata; save it again")
    pictures = [*contents.items(b"av01").values(), *contents.frames()]
    return max([*contents.sizes, coded_size(pictures)], key=prod)
