"""Read the size of pictures from AV1 data (AV1 Bitstream & Decoding Process Specification)."""

from collections.abc import Iterable, Iterator
from math import prod

from models.images.errors import MAX_READS, TooManyPieces

SEQUENCE_HEADER = 1
"""The type of the unit (OBU) with the largest size of the pictures after it."""
LARGEST = (1 << 16, 1 << 16)
"""Width and height of the largest pictures of AV1."""


class Bits:
    """Reads numbers of any count of bits, the highest bit first. Bits after the end are 0."""

    def __init__(self, data: bytes) -> None:
        self.bits = "".join(f"{byte:08b}" for byte in data)
        self.place = 0

    def read(self, count: int) -> int:
        digits = self.bits[self.place : self.place + count]
        self.place += count
        return int(digits.ljust(count, "0"), 2)


def coded_size(pictures: Iterable[bytes]) -> tuple[int, int]:
    """Return width and height of the largest picture that AV1 data may contain, or (0, 0) if it has no header.

    Raises TooManyPieces.
    """
    largest, count = (0, 0), 0
    for picture in pictures:
        for kind, unit in units(picture):
            count += 1
            if count > MAX_READS:
                raise TooManyPieces
            if kind == SEQUENCE_HEADER:
                largest = max(largest, sequence_size(unit), key=prod)
    return largest


def units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and first bytes of each unit (section 5.3)."""
    place = 0
    while place < len(data):
        header = data[place]
        place += 2 if header & 0b100 else 1
        size = len(data) - place
        if header & 0b10:
            size, place = read_leb128(data, place)
        yield header >> 3 & 0b1111, data[place : place + min(size, 256)]
        place += size


def read_leb128(data: bytes, place: int) -> tuple[int, int]:
    """Return a number in groups of seven bits, the lowest first, and the place after it (section 4.10.5)."""
    number = 0
    for position, byte in enumerate(data[place : place + 8]):
        number |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return number, place + position + 1
    return number, place + 8


def sequence_size(unit: bytes) -> tuple[int, int]:
    """Return max_frame_width and max_frame_height of a sequence header (section 5.5.1).

    Returns LARGEST if the header describes the timing of a decoder, which image encoders leave out.
    """
    bits = Bits(unit)
    bits.read(4)  # seq_profile, still_picture
    if bits.read(1):  # reduced_still_picture_header
        bits.read(5)
    else:
        if bits.read(1):  # timing_info_present_flag
            return LARGEST
        delays = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:  # seq_level_idx
                bits.read(1)
            if delays and bits.read(1):
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1
