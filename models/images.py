"""Decode image files to upright 8-bit RGB by the same rules for training and serving."""

import hashlib
import struct
import warnings
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from models.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Formats that the service accepts."""
TRAINING_FORMATS = (*FORMATS, "TIFF", "PPM")

MAX_READS = 100_000
"""Pillow reads a file piece by piece in Python and keeps most pieces. Real encoders write pieces of kilobytes, so large
files take thousands of reads. A run-length encoded BMP takes one read for each run."""

# The service has its own limit on pixels, and its error names the setting.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
COMPRESSED_TEXT = 1
"""Value of an iTXt chunk's compression flag."""

END_OF_IMAGE = b"\xff\xd9"
FILLER = bytes(range(1, 128))
"""Entropy-coded data for the end of a JPEG. A decoder with all of its pixels ignores it."""

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the operation that makes the image upright."""


class ImageError(UserError):
    """An image file can't be decoded."""


class ImageTooLarge(ImageError):
    """An image has more pixels than Pillow opens."""


class TooManyPieces(ImageError):
    """An image file takes too many reads."""


class Pieces(BytesIO):
    """A file that raises TooManyPieces after MAX_READS reads."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads_left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise TooManyPieces(f"the file is in more than {MAX_READS:,} pieces; save it again")
        return super().read(size)


class EncodedImage:
    """An image file with its header read and its pixels not yet decoded.

    A JPEG far larger than ``shorter_side`` pixels is decoded at 1/2, 1/4 or 1/8 of its size, at a fraction of the cost.
    Its sides stay at least four times ``shorter_side``. 0 decodes at full size.

    Raises ImageError where the header can't be read.
    """

    def __init__(self, data: bytes, formats: tuple[str, ...] = FORMATS, shorter_side: int = 0) -> None:
        self.data, self.formats, self.shorter_side = data, formats, shorter_side
        try:
            try:
                self.image = Image.open(Pieces(data), formats=formats)
            except ValueError:  # Pillow refuses text that is far larger than its compressed form.
                self.image = Image.open(Pieces(without_compressed_text(data)), formats=formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageTooLarge(str(error)) from error
        except (ImageError, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise ImageError(f"it is no {', '.join(formats)} file, or its header is damaged") from error
        except Exception as error:  # Decoders raise many types.
            raise ImageError(f"its header can't be read: {error}") from error
        self.full_size = self.image.size
        self.draft()

    def draft(self) -> None:
        """Set the size at which a JPEG is decoded."""
        if self.shorter_side:
            self.image.draft(None, (4 * self.shorter_side, 4 * self.shorter_side))

    def decode(self) -> Image.Image:
        """Return the first frame as 8-bit RGB, upright and on white where it is transparent.

        An embedded ICC profile is ignored. Raises ImageError where the file is damaged.
        """
        try:
            self.load()
            transposition = find_transposition(self.image)
            pixels = to_rgb(self.image)
            return pixels if transposition is None else pixels.transpose(transposition)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # Decoders raise many types.
            raise ImageError(f"the {self.image.format} image is damaged or incomplete: {error}") from error

    def load(self) -> None:
        """Decode the pixels; a PNG may have large text and a JPEG may lack its end marker."""
        try:
            self.image.load()
            return
        except ValueError:
            if self.image.format != "PNG":
                raise
        except OSError as error:
            if self.image.format not in ("JPEG", "MPO"):
                raise
            # The exception itself would keep the failed image's memory.
            message = str(error)
        if self.image.format == "PNG":
            self.reload(without_compressed_text(self.data))
        elif not self.load_without_end_marker():
            raise OSError(message)

    def load_without_end_marker(self) -> bool:
        """Decode a JPEG that lacks only its end marker; return whether all of its pixels are there."""
        start = self.data.removesuffix(END_OF_IMAGE[:1])
        digests = set()
        for tail in (FILLER, b""):
            self.reload(start + tail + END_OF_IMAGE)
            digests.add(digest(self.image))
        # Missing pixels would be decoded from the filler, and differ.
        return len(digests) == 1

    def reload(self, data: bytes) -> None:
        """Decode ``data`` in place of the file."""
        self.image = Image.open(Pieces(data), formats=self.formats)
        self.draft()
        self.image.load()


def decode_image(data: bytes, shorter_side: int = 0, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Return an image file's pixels as `EncodedImage.decode` does.

    Raises ImageError.
    """
    return EncodedImage(data, formats, shorter_side).decode()


def to_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB of a loaded image of any mode.

    16 bits are cut to 8, CMYK is converted and transparent pixels are blended with white.
    """
    if image.mode.startswith("I"):  # Pillow would clip these values at 255.
        image = to_8_bit_grey(image)
    elif image.has_transparency_data and not is_opaque(image):
        colours = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(colours, mask=colours)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def to_8_bit_grey(image: Image.Image) -> Image.Image:
    """Return the high byte of 16-bit grey values, with white in place of the transparent one."""
    values = np.asarray(image)
    grey = (values.clip(0, 65535) >> 8).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def is_opaque(image: Image.Image) -> bool:
    """Return whether the alpha of a BMP is 0 everywhere; then its writer left the channel unused."""
    return image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0)


def find_transposition(image: Image.Image) -> Image.Transpose | None:
    """Return the operation that EXIF asks for; a damaged EXIF block asks for none."""
    try:
        return TRANSPOSITIONS.get(image.getexif().get(0x0112, 1))
    except Exception:
        return None


def without_compressed_text(data: bytes) -> bytes:
    """Return a PNG file without its compressed text and colour profile; raises TooManyPieces.

    Image generators write their settings there, which can be megabytes. No pixel depends on them.
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
            compressed = kind in (b"zTXt", b"iCCP")
        if not compressed:
            kept.append(chunk)
        if len(kept) > MAX_READS:
            raise TooManyPieces(f"the file is in more than {MAX_READS:,} pieces; save it again")
    return b"".join(kept)


def digest(image: Image.Image) -> bytes:
    """Return a hash of a loaded image's pixels, made strip by strip to save memory."""
    pixels = hashlib.sha256()
    for top in range(0, image.height, 64):
        pixels.update(image.crop((0, top, image.width, min(top + 64, image.height))).tobytes())
    return pixels.digest()
