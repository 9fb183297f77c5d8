"""What the verbs that measure speed have in common: lists of numbers on the command line, and the table they print."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.benchmark.suite import Row

NUMBERS = r"^[1-9]\d*(,[1-9]\d*)*$"
SHARES = r"^(0(\.\d+)?|1(\.0+)?)(,(0(\.\d+)?|1(\.0+)?))*$"


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def heading() -> str:
    return (
        f"{'network':<24} {'batch':>5} {'threads':>7}  {'routing':<20} {'engine':<28} "
        f"{'MAC share':>9} {'wall share (quartiles)':>24} {'ms':>9}"
    )


def line(row: "Row") -> str:
    wall = f"{row.wall_share:.3f} ({row.wall_share_low:.3f}-{row.wall_share_high:.3f})"
    energy = "" if row.joules_per_image is None else f" {row.joules_per_image:>9.4f} J an image"
    return (
        f"{row.architecture:<24} {row.batch:>5} {row.threads:>7}  {row.routing:<20} {row.engine:<28} "
        f"{row.mac_share:>9.3f} {wall:>24} {row.milliseconds:>9.3f}{energy}"
    )
