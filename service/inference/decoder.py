"""Decode uploaded images to RGB within limits on pixels and memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

from PIL import Image

from models.images import boxes, tiff
from models.images.encoded import FORMATS, EncodedImage
from models.images.errors import ImageError, ImageTooLarge, TooManyPieces
from service.errors import Code, ServiceError

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF87a", b"GIF89a", *tiff.SIGNATURES)
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
"""The brands of AVIF and HEIF files, from their first box."""

START_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", b"\xff\xda"
SCAN = START_OF_SCAN + b"\x00"
"""Ten bytes of a JPEG can start another scan of the full image. Each begins with this marker and a length below 256."""
MAX_SCANS = 100
"""Phones write ten scans, and ten for each smaller picture that they append."""

# Decoding an image of this size takes less time than waking another thread, unless text is decompressed or colours are
# converted.
SMALL_FILE = 4096
SMALL_PIXELS = 64 * 64
QUICK_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
COMPRESSED_CHUNKS = (b"zTXt", b"iTXt", b"iCCP")

# The measured peak between the file and upright RGB, rounded up.
BYTES_PER_PIXEL = 10
BYTES_PER_PIXEL_CONVERTED = 14
"""Bytes per pixel for a mode whose conversion needs one more copy."""
BYTES_PER_PIXEL_HEIF, BYTES_PER_PIXEL_HEIF_CONVERTED = 11, 16
"""HEIF's decoder keeps an additional copy of the picture."""
BYTES_PER_PIXEL_MOST = 24
"""The decoders of WebP and AVIF keep two copies. For 32-bit integers, several arrays are made."""
BYTES_PER_COEFFICIENT = 2

MIB = 1 << 20


class DecodeMemory:
    """A budget of bytes for all decoding threads. A thread waits until enough are free."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self.changed = threading.Condition()
        self.turn = threading.Lock()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until ``size`` bytes (at most the budget) are free, and hold them."""
        # Threads are served in order. Otherwise small images would starve a large one.
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
    """Decodes images of at most ``max_pixels`` in any number of threads within ``max_memory`` bytes."""

    def __init__(self, max_pixels: int, max_memory: int) -> None:
        self.max_pixels = max_pixels
        self.memory = DecodeMemory(max_memory)

    def warm_up(self) -> None:
        """Load Pillow's decoders. This takes some tenths of a second."""
        Image.init()

    @contextmanager
    def decode(self, data: bytes, shorter_side: int = 0) -> Iterator[Image.Image]:
        """Yield the pixels of an image file as `models.images.encoded.EncodedImage.decode` returns them.

        The image's memory is counted until the `with` block ends.

        Raises ServiceError: unsupported_media_type, damaged_image or image_too_large.
        """
        encoded = self.open(data, shorter_side)
        with self.memory.hold(memory_of(encoded)):
            yield pixels(encoded)

    def decode_small(self, data: bytes, shorter_side: int = 0) -> Image.Image | None:
        """Return the pixels of an image that decodes in a fraction of a millisecond, or None for any other.

        Call it in one thread at a time, since its few kilobytes are not counted. Raises as `decode` does.
        """
        if len(data) > SMALL_FILE or any(chunk in data for chunk in COMPRESSED_CHUNKS):
            return None
        encoded = self.open(data, shorter_side)
        image = encoded.image
        if prod(encoded.full_size) > SMALL_PIXELS or image.format not in QUICK_FORMATS or "icc_profile" in image.info:
            return None
        return pixels(encoded)

    def open(self, data: bytes, shorter_side: int = 0) -> EncodedImage:
        """Read the header of an image and check the limits. No pixel is decoded."""
        try:
            encoded = EncodedImage(data, FORMATS, shorter_side)
        except ImageTooLarge as error:
            raise ServiceError(Code.IMAGE_TOO_LARGE, f"the image has too many pixels; {self.pixel_limit()}") from error
        except TooManyPieces as error:
            raise ServiceError(Code.DAMAGED_IMAGE, f"the image cannot be read: {error}") from error
        except ImageError as error:
            if looks_like_image(data):
                raise ServiceError(
                    Code.DAMAGED_IMAGE, "the image's header is damaged; check that the upload is complete"
                ) from error
            raise ServiceError(
                Code.UNSUPPORTED_MEDIA_TYPE, f"not an image that can be read; send {', '.join(FORMATS)}"
            ) from error
        self.check_limits(encoded)
        return encoded

    def check_limits(self, encoded: EncodedImage) -> None:
        """Raise ServiceError image_too_large if an image has too many pixels or scans, or takes too much memory."""
        width, height = max(encoded.full_size, encoded.hidden_size, key=prod)
        if width * height > self.max_pixels:
            raise ServiceError(Code.IMAGE_TOO_LARGE, f"the image has {width} x {height} pixels; {self.pixel_limit()}")
        if is_jpeg(encoded) and encoded.data.count(SCAN) > MAX_SCANS:
            raise ServiceError(Code.IMAGE_TOO_LARGE, f"the JPEG has more than {MAX_SCANS} scans; save it again")
        needed = memory_of(encoded)
        if needed > self.memory.size:
            raise ServiceError(
                Code.IMAGE_TOO_LARGE,
                f"decoding the image ({width} x {height} pixels, {encoded.image.format}) takes "
                f"{needed / MIB:,.0f} MiB of memory and {self.memory.size / MIB:,.0f} MiB are allowed; "
                "send a smaller image, or raise --max-decode-memory (SKIPNET_MAX_DECODE_MEMORY)",
            )

    def pixel_limit(self) -> str:
        return (
            f"at most {self.max_pixels:,} are accepted; send a smaller image, or raise --max-image-pixels "
            "(SKIPNET_MAX_IMAGE_PIXELS)"
        )


def pixels(encoded: EncodedImage) -> Image.Image:
    """Return the decoded pixels.

    Raises ServiceError damaged_image.
    """
    try:
        return encoded.decode()
    except ImageError as error:
        raise ServiceError(Code.DAMAGED_IMAGE, f"the image cannot be read: {error}") from error


def memory_of(encoded: EncodedImage) -> int:
    """Return the bytes to count for decoding an image."""
    image = encoded.image
    return max(prod(image.size), prod(encoded.hidden_size)) * bytes_per_pixel(image) + coefficient_memory(encoded)


def bytes_per_pixel(image: Image.Image) -> int:
    if image.format in ("WEBP", "AVIF") or image.mode == "I":
        return BYTES_PER_PIXEL_MOST
    plain = image.mode in ("1", "L", "P") or (image.mode == "RGB" and not image.has_transparency_data)
    if image.format == "HEIF":
        return BYTES_PER_PIXEL_HEIF if plain else BYTES_PER_PIXEL_HEIF_CONVERTED
    return BYTES_PER_PIXEL if plain else BYTES_PER_PIXEL_CONVERTED


def coefficient_memory(encoded: EncodedImage) -> int:
    """Return the bytes that libjpeg keeps for a JPEG's coefficients until its last scan, at full size.

    A JPEG of a single scan keeps none.
    """
    if not is_jpeg(encoded) or is_single_scan(encoded):
        return 0
    width, height = encoded.full_size
    samplings = [horizontal * vertical for _, horizontal, vertical, _ in components(encoded.image)]
    return width * height * BYTES_PER_COEFFICIENT * sum(samplings) // max(samplings)


def is_single_scan(encoded: EncodedImage) -> bool:
    """Return whether the first scan of a JPEG holds all coefficients of all components."""
    in_first_scan = count_scan_components(encoded.data)
    return "progressive" not in encoded.image.info and in_first_scan == len(components(encoded.image))


def count_scan_components(data: bytes) -> int:
    """Return the number of components in a JPEG's first scan, or 0 if its segments cannot be parsed."""
    place = len(START_OF_IMAGE)
    while place + 5 <= len(data):
        marker, length = data[place : place + 2], int.from_bytes(data[place + 2 : place + 4])
        if marker == START_OF_SCAN:
            return data[place + 4]
        place += 2 + length
    return 0


def components(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Return identifier, horizontal and vertical sampling, and quantisation table of a JPEG's components."""
    return image.layer  # type: ignore[attr-defined,no-any-return]


def is_jpeg(encoded: EncodedImage) -> bool:
    # An MPO is a JPEG whose header lists more images after it.
    return encoded.image.format in ("JPEG", "MPO")


def looks_like_image(data: bytes) -> bool:
    """Return whether the first bytes are the signature of a format in FORMATS."""
    if data[4:8] == boxes.FILE_TYPE:
        return data[8:12] in BRANDS
    return data.startswith(SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
