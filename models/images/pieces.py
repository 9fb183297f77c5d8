"""Read a file piece by piece, with a limit on their number."""

from io import BytesIO

from models.images.errors import MAX_READS, TooManyPieces


class Pieces(BytesIO):
    """A file that raises TooManyPieces after MAX_READS reads."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads_left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise TooManyPieces
        return super().read(size)
