"""Repair files that other programs can read: PNGs with megabytes of text, and JPEGs without an end marker."""

import hashlib
import struct
import zlib

from PIL import Image
from PIL.PngImagePlugin import MAX_TEXT_CHUNK

from models.images.errors import MAX_READS, TooManyPieces

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
COMPRESSED_TEXT = 1
"""Value of an iTXt chunk's compression flag."""

END_OF_IMAGE = b"\xff\xd9"
FILLER = bytes(range(1, 128))
"""Entropy-coded data for the end of a JPEG. A decoder with all of its pixels ignores it."""


def without_compressed_text(data: bytes) -> bytes:
    """Return a PNG file without its compressed text, and without a colour profile that is too large for Pillow.

    Image generators write their settings as text, which can be megabytes. Raises TooManyPieces.
    """
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunk = data[place : place + length + 12]
        place += len(chunk)
        if kind == b"iTXt":
            _, _, value = chunk[8:].partition(b"\0")
            compressed = value[:1] == bytes((COMPRESSED_TEXT,))
        else:
            compressed = kind == b"zTXt" or (kind == b"iCCP" and not is_short(chunk[8:]))
        if not compressed:
            kept.append(chunk)
        if len(kept) > MAX_READS:
            raise TooManyPieces
    return b"".join(kept)


def is_short(profile: bytes) -> bool:
    """Return whether a PNG's compressed colour profile is small enough for Pillow."""
    _, _, value = profile.partition(b"\0")
    unfolding = zlib.decompressobj()
    try:
        unfolding.decompress(value[1:], MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return not unfolding.unconsumed_tail


def digest(image: Image.Image) -> bytes:
    """Return a hash of a loaded image's pixels, made strip by strip to save memory."""
    pixels = hashlib.sha256()
    for top in range(0, image.height, 64):
        pixels.update(image.crop((0, top, image.width, min(top + 64, image.height))).tobytes())
    return pixels.digest()
