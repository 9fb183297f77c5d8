"""Errors of image files."""

from models.errors import UserError

MAX_READS = 100_000
"""Pillow reads a file piece by piece in Python and keeps most pieces. Real encoders write pieces of kilobytes, so large
files take thousands of reads. A run-length encoded BMP takes one read for each run."""

MAX_EXIF = 1 << 20
"""In bytes. Pillow may parse and write an EXIF block in Python. Cameras write up to some hundred kilobytes."""


class ImageError(UserError):
    """An image file cannot be decoded."""


class ImageTooLarge(ImageError):
    """An image has more pixels than Pillow opens."""


class TooManyPieces(ImageError):
    """An image file takes too many reads."""

    def __init__(self) -> None:
        super().__init__(f"the file is in more than {MAX_READS:,} pieces; save it again")
