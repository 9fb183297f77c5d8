"""The rows of a benchmark as a Markdown table, one line for each network, batch, thread count and routing."""

from collections.abc import Sequence
from itertools import groupby

from models.benchmark.suite import Row

OWN = ("native", "persistent")
COLUMNS = (
    "network",
    "batch, threads",
    "blocks executed",
    "engine",
    "ms",
    "share of dense MACs",
    "share of dense time (quartiles)",
    "of ONNX Runtime's or torch's",
)
ENERGY = "J an image"


def draw_table(rows: list[Row]) -> str:
    """Return the table. Time is a share of the best dense engine's, and beside it of the best that is not ours.

    Energy has a column where it was measured.
    """
    columns = COLUMNS + ((ENERGY,) if any(row.joules_per_image is not None for row in rows) else ())
    lines = [draw_line(columns), "|" + "---|" * len(columns) + "\n"]
    for _, measured in groupby(rows, key=lambda row: (row.architecture, row.batch, row.threads)):
        together = list(measured)
        others = [row for row in together if row.routing == "dense" and not row.engine.startswith(OWN)]
        best_other = min((row.milliseconds for row in others), default=float("nan"))
        lines += [draw_line(draw_cells(row, best_other)[: len(columns)]) for row in together]
    return "".join(lines)


def draw_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def draw_cells(row: Row, best_other: float) -> list[str]:
    routing = "all, no gates" if row.routing == "dense" else row.routing.removesuffix(" of the blocks")
    wall = f"{row.wall_share:.2f} ({row.wall_share_low:.2f}-{row.wall_share_high:.2f})"
    return [
        row.architecture,
        f"{row.batch}, {row.threads}",
        routing,
        row.engine,
        f"{row.milliseconds:.3g}",
        f"{row.mac_share:.2f}",
        wall,
        f"{row.milliseconds / best_other:.2f}",
        "" if row.joules_per_image is None else f"{row.joules_per_image:.3g}",
    ]
