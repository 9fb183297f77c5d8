"""From an uploaded file's bytes to an upright RGB image, within bounds on pixels and memory."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image

from service.errors import Code, ServiceError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF87a", b"GIF89a")

# A JPEG says in ten bytes that the whole image is to be gone through again: by this marker, and a length of 14 at most.
# Phones make ten scans, and as many of each smaller picture that they append.
SCAN = b"\xff\xda\x00"
MAX_SCANS = 100

# Pillow goes through a file's pieces in Python, and keeps most. Encoders make pieces of kilobytes, so that the largest
# file is read in some thousands of calls; of a run-length encoded BMP each run takes one.
MAX_READS = 100_000

# The bound on pixels is our own, and says so to whoever sent them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# EXIF's orientation, and what sets it upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# An image so small takes less time to decode than another thread to wake; unless it unfolds text or a profile.
SMALL_FILE = 4096
SMALL_PIXELS = 64 * 64
UNFOLDING = (b"zTXt", b"iTXt", b"iCCP")

# The most that decoding was seen to hold at once, from the file's pixels to upright RGB, rounded up; WebP's
# decoder keeps two canvases of its own.
BYTES_PER_PIXEL = 16
BYTES_PER_PIXEL_WEBP = 24


class TooManyPieces(Exception):
    """A file takes too many reads."""


class Pieces(BytesIO):
    """A file that can be read so many times."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise TooManyPieces(f"it is in more than {MAX_READS:,} pieces; save it again")
        return super().read(size)


class DecodeMemory:
    """Bytes that all decoding threads together may fill; who finds too few left waits for the others."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self.changed = threading.Condition()
        self.turn = threading.Lock()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes, at most all there are, waiting for them."""
        # Whoever waits keeps those behind waiting too: else small images would starve a large one.
        with self.turn, self.changed:
            self.changed.wait_for(lambda: self.free >= size)
            self.free -= size
        try:
            yield
        finally:
            with self.changed:
                self.free += size
                self.changed.notify_all()


class Decoder:
    """Decodes images of at most ``max_pixels``, in any number of threads, within ``max_memory`` bytes."""

    def __init__(self, max_pixels: int, max_memory: int) -> None:
        self.max_pixels = max_pixels
        self.memory = DecodeMemory(max_memory)

    @property
    def busy(self) -> bool:
        """Whether an image is being decoded."""
        return self.memory.free < self.memory.size

    def warm_up(self) -> None:
        """Load Pillow's decoders, some tenths of a second that the first request would pay for."""
        Image.init()

    @contextmanager
    def decode(self, data: bytes, shorter_side: int = 0) -> Iterator[Image.Image]:
        """Lend the first frame of a JPEG, PNG, WebP, BMP or GIF as an RGB image, turned as EXIF says.

        What is transparent shows white. A JPEG far larger than ``shorter_side`` pixels is decoded at a half,
        a quarter or an eighth of its size (never under four times that), which that format does at a fraction
        of the cost. The image's memory counts as taken until the block ends.

        Raises ServiceError: unsupported_media_type, damaged_image or image_too_large.
        """
        image = self.open(data)
        with self.memory.hold(memory_of(image)):
            yield upright(image, shorter_side)

    def decode_small(self, data: bytes, shorter_side: int = 0) -> Image.Image | None:
        """Return what `decode` lends, if it is there in a fraction of a millisecond; else None.

        For one thread at a time: its few kilobytes are not counted as taken. Raises as `decode` does.
        """
        if len(data) > SMALL_FILE or any(chunk in data for chunk in UNFOLDING):
            return None
        image = self.open(data)
        return upright(image, shorter_side) if image.width * image.height <= SMALL_PIXELS else None

    def open(self, data: bytes) -> Image.Image:
        """Return the image with its size and mode known and no pixel decoded."""
        try:
            image = Image.open(Pieces(data), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ServiceError(Code.IMAGE_TOO_LARGE, self.too_large()) from error
        except TooManyPieces as error:
            raise ServiceError(Code.DAMAGED_IMAGE, f"the image can't be read: {error}") from error
        except Exception as error:
            if looks_like_image(data):
                raise ServiceError(
                    Code.DAMAGED_IMAGE, "the image's header is damaged; check that the upload is complete"
                ) from error
            raise ServiceError(
                Code.UNSUPPORTED_MEDIA_TYPE, f"not an image that can be read; send {', '.join(FORMATS)}"
            ) from error
        if image.width * image.height > self.max_pixels or memory_of(image) > self.memory.size:
            raise ServiceError(
                Code.IMAGE_TOO_LARGE,
                f"the image has {image.width} x {image.height} pixels; {self.too_large()}",
            )
        # An MPO is a JPEG that says in its header that others follow; Pillow opens it as one of its own accord.
        if image.format in ("JPEG", "MPO") and data.count(SCAN) > MAX_SCANS:
            raise ServiceError(Code.IMAGE_TOO_LARGE, f"the JPEG has more than {MAX_SCANS} scans; save it again")
        return image

    def too_large(self) -> str:
        most = min(self.max_pixels, self.memory.size // BYTES_PER_PIXEL)
        return f"at most {most:,} pixels are decoded ({BYTES_PER_PIXEL / BYTES_PER_PIXEL_WEBP:.0%} of that in WebP)"


def memory_of(image: Image.Image) -> int:
    """Return the bytes to count for decoding an image that is open."""
    return image.width * image.height * (BYTES_PER_PIXEL_WEBP if image.format == "WEBP" else BYTES_PER_PIXEL)


def looks_like_image(data: bytes) -> bool:
    """Return whether the first bytes are those of a format that is read here."""
    return data.startswith(SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def upright(image: Image.Image, shorter_side: int) -> Image.Image:
    """Return the pixels of an opened image, RGB and turned; raises ServiceError damaged_image."""
    try:
        turn = orientation(image)
        if shorter_side:
            image.draft(None, (4 * shorter_side, 4 * shorter_side))
        pixels = to_rgb(image)
        return pixels.transpose(turn) if turn is not None else pixels
    except MemoryError:
        raise
    except Exception as error:  # Whatever a decoder raises, these bytes made it do so.
        raise ServiceError(Code.DAMAGED_IMAGE, f"the {image.format} image is damaged or incomplete: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB of an image of any mode: 16 bits cut to 8, CMYK converted, transparency on white."""
    if image.mode.startswith("I"):  # Pillow would clip these at 255.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(pixels, mask=pixels.getchannel("A"))
        return white
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: Image.Image) -> Image.Transpose | None:
    """Return the turn that EXIF asks for; a damaged EXIF block asks for none."""
    try:
        return TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:
        return None
