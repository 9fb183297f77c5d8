"""Format measurements as a Markdown table with one line for each engine and routing."""

from collections.abc import Sequence
from itertools import groupby

from models.benchmark.suite import DENSE, PUBLIC_CODE, Measurement

OWN_ENGINES = ("native", "persistent")
"""Engines of this project. The other dense engines are those that a user may install instead."""
COLUMNS = (
    "network",
    "batch, threads",
    "executed blocks",
    "engine",
    "ms per batch",
    "MACs / dense",
    "time / fastest dense engine (quartiles)",
    "time / fastest dense engine of others",
)
ENERGY = "J per image"
NOTES = f"""
"Dense" is the same ResNet without gates. Its fastest engine in any precision has time 1.00. It runs in the same
rounds.
"{PUBLIC_CODE}" computes every block and masks the skipped ones; batch norm is not folded into the convolutions.
"""


def draw_table(measurements: Sequence[Measurement]) -> str:
    """Return the table and its notes. Energy has a column if it was measured."""
    energy = any(each.joules_per_image is not None for each in measurements)
    columns = COLUMNS + ((ENERGY,) if energy else ())
    lines = [draw_line(columns), "|" + "---|" * len(columns) + "\n"]
    for _, members in groupby(measurements, key=lambda each: (each.architecture, each.batch, each.threads)):
        group = list(members)
        others = [each for each in group if each.routing == DENSE and not each.engine.startswith(OWN_ENGINES)]
        fastest_other = min((each.milliseconds for each in others), default=float("nan"))
        lines += [draw_line(draw_cells(each, fastest_other)[: len(columns)]) for each in group]
    return "".join([*lines, NOTES])


def draw_line(cells: Sequence[str]) -> str:
    """Return one line of the table."""
    return f"| {' | '.join(cells)} |\n"


def draw_cells(each: Measurement, fastest_other: float) -> list[str]:
    """Return the cells of one measurement."""
    routing = "all (no gates)" if each.routing == DENSE else each.routing.removesuffix(" of the blocks")
    return [
        each.architecture,
        f"{each.batch}, {each.threads}",
        routing,
        each.engine,
        f"{each.milliseconds:.3g}",
        f"{each.mac_share:.2f}",
        f"{each.wall_share:.2f} ({each.wall_share_low:.2f}-{each.wall_share_high:.2f})",
        f"{each.milliseconds / fastest_other:.2f}",
        "" if each.joules_per_image is None else f"{each.joules_per_image:.3g}",
    ]
