"""Decode image files to upright 8-bit RGB in sRGB."""

import warnings

import pillow_heif
from PIL import AvifImagePlugin, ExifTags, Image, UnidentifiedImageError

from models.images import boxes, tiff
from models.images.errors import MAX_EXIF, ImageError, ImageTooLarge
from models.images.pieces import Pieces
from models.images.repair import END_OF_IMAGE, FILLER, digest, without_compressed_text
from models.images.rgb import to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "GIF")
"""Formats that the service accepts."""
TRAINING_FORMATS = (*FORMATS, "PPM")

# The service has its own limit on pixels, and its error names the setting. Other warnings report damaged metadata, and
# Python would keep each different text in memory.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")

# Many images are decoded at the same time, so each is decoded in one thread.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


MAX_HIDDEN_PIXELS = 2 * 89_478_485
"""Pixels of the largest picture or tile in a file. Pillow opens no image with more pixels."""

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes an image upright, by its EXIF orientation."""


class EncodedImage:
    """An image file with its header read and its pixels not yet decoded.

    A JPEG far larger than ``shorter_side`` pixels is decoded at 1/2, 1/4 or 1/8 of its size, at a fraction of the cost.
    Its sides stay at least four times ``shorter_side``. 0 decodes at full size.

    ``full_size`` is the image's width and height. ``hidden_size`` is that of the largest picture or tile that the
    decoder makes internally, which may be larger. It is (0, 0) if there is none.

    Raises ImageError if the header cannot be read.
    """

    def __init__(self, data: bytes, formats: tuple[str, ...] = FORMATS, shorter_side: int = 0) -> None:
        self.data, self.formats, self.shorter_side = data, formats, shorter_side
        try:
            self.hidden_size = find_hidden_size(data)
            try:
                self.image = Image.open(Pieces(data), formats=formats)
            except ValueError:  # Pillow refuses text that is far larger than its compressed form.
                self.image = Image.open(Pieces(without_compressed_text(data)), formats=formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageTooLarge(str(error)) from error
        except (ImageError, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise ImageError(f"it is not a {', '.join(formats)} file, or its header is damaged") from error
        except Exception as error:  # Decoders raise many types of exceptions.
            raise ImageError(f"its header cannot be read: {error}") from error
        self.full_size = self.image.size
        self.draft()

    def draft(self) -> None:
        """Set the size at which a JPEG is decoded."""
        if self.shorter_side:
            self.image.draft(None, (4 * self.shorter_side, 4 * self.shorter_side))

    def decode(self) -> Image.Image:
        """Return the first frame as upright 8-bit RGB in sRGB. Transparent pixels are blended with white.

        Raises ImageError if the file is damaged.
        """
        try:
            self.load()
            transposition = find_transposition(self.image)
            pixels = to_rgb(self.image)
            return pixels if transposition is None else pixels.transpose(transposition)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # Decoders raise many types of exceptions.
            raise ImageError(f"the {self.image.format} image is damaged or incomplete: {error}") from error

    def load(self) -> None:
        """Decode the pixels. A PNG may have large text, and a JPEG may lack its end marker."""
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
        """Decode a JPEG that lacks only its end marker. Return whether all of its pixels are present."""
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


def find_hidden_size(data: bytes) -> tuple[int, int]:
    """Return the size of the largest picture or tile that a TIFF, AVIF or HEIF file contains, or (0, 0).

    Raises ImageError if a picture is very large, or if the file has too many parts.
    """
    if data.startswith(tiff.SIGNATURES):
        width, height = tiff.largest_tile(data)
    elif data[4:8] == boxes.FILE_TYPE:
        width, height = boxes.largest_picture(data)
    else:
        return 0, 0
    if width * height > MAX_HIDDEN_PIXELS:
        raise ImageTooLarge(f"it contains a picture of {width} x {height} pixels")
    return width, height


def find_transposition(image: Image.Image) -> Image.Transpose | None:
    """Return the operation for the EXIF orientation, or none if the EXIF block is damaged or very large.

    `PIL.ImageOps.exif_transpose` would rewrite the complete block. Pillow calls it for a TIFF when it loads the pixels.
    """
    try:
        if len(image.info.get("exif", b"")) > MAX_EXIF:
            return None
        return TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return None
