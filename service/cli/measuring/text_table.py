"""Lists of numbers on the command line and the table that `bench` and `verify-gpu` print."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.benchmark.suite import Measurement

NUMBERS = r"^[1-9]\d*(,[1-9]\d*)*$"
SHARES = r"^(0(\.\d+)?|1(\.0+)?)(,(0(\.\d+)?|1(\.0+)?))*$"


def numbers(text: str) -> list[int]:
    """Return the numbers in a list that is separated by commas."""
    return [int(number) for number in text.split(",")]


def heading() -> str:
    """Return the heading of the table and an explanation of its columns."""
    return (
        "MACs and time are relative to the same ResNet without gates, time to its fastest engine in the same rounds.\n"
        "SkipNet's public code computes every block and masks the skipped ones, with batch norm not folded.\n"
        f"{'network':<24} {'batch':>5} {'threads':>7}  {'executed blocks':<20} {'engine':<28} "
        f"{'MACs / dense':>12} {'time / dense (quartiles)':>24} {'ms per batch':>12}"
    )


def line(each: "Measurement") -> str:
    """Return the line of a measurement."""
    wall = f"{each.wall_share:.3f} ({each.wall_share_low:.3f}-{each.wall_share_high:.3f})"
    energy = "" if each.joules_per_image is None else f" {each.joules_per_image:>9.4f} J per image"
    return (
        f"{each.architecture:<24} {each.batch:>5} {each.threads:>7}  {each.routing:<20} {each.engine:<28} "
        f"{each.mac_share:>12.3f} {wall:>24} {each.milliseconds:>12.3f}{energy}"
    )
