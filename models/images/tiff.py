"""Check how a TIFF is divided before Pillow opens it."""

from PIL import ExifTags
from PIL.TiffImagePlugin import STRIPOFFSETS, TILELENGTH, TILEOFFSETS, TILEWIDTH, ImageFileDirectory_v1

from models.images.errors import MAX_READS, TooManyPieces
from models.images.pieces import Pieces

SIGNATURES = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
"""The first bytes of a TIFF or BigTIFF that Pillow opens."""
BIG = 43
"""The third byte of what Pillow reads as a BigTIFF."""
INNER_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop)
"""Tags of directories that Pillow reads with an image's pixels."""
BYTES, TEXT, SHORT, LONG, UNDEFINED, LONG8 = 1, 2, 3, 4, 7, 16
"""Types of a tag's values."""
SIZES = {SHORT: 2, LONG: 4, LONG8: 8}


def largest_tile(data: bytes) -> tuple[int, int]:
    """Return width and height of the tiles of a TIFF's first image, or (0, 0) if it has none.

    A tile is decoded completely, and may be larger than the image.

    Raises TooManyPieces if the image has more than MAX_READS tiles or strips, or a tag has more numbers. Pillow makes
    Python objects of them.
    """
    header = data[: 16 if data[2] == BIG else 8]
    tags = ImageFileDirectory_v1(header)
    read_tags(tags, data, tags.next)
    for tag in INNER_DIRECTORIES:
        if tag in tags.tagdata and tags.tagtype[tag] in SIZES:
            read_tags(ImageFileDirectory_v1(header), data, tags[tag][0])
    sides = [tags[tag][0] if tags.tagtype.get(tag) in SIZES else 0 for tag in (TILEWIDTH, TILELENGTH)]
    return sides[0], sides[1]


def read_tags(tags: ImageFileDirectory_v1, data: bytes, place: int) -> None:
    """Read the directory at ``place``.

    Raises TooManyPieces.
    """
    file = Pieces(data)
    file.seek(place)
    tags.load(file)
    for tag, value in tags.tagdata.items():
        kind = tags.tagtype[tag]
        stays_bytes = kind in (BYTES, TEXT, UNDEFINED) and tag not in (STRIPOFFSETS, TILEOFFSETS)
        if not stays_bytes and len(value) // SIZES.get(kind, 1) > MAX_READS:
            raise TooManyPieces
