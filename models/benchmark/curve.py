"""The curve wall share over MAC share as an SVG picture: on the diagonal, time follows multiply-adds."""

from collections.abc import Iterable
from operator import attrgetter

from models.benchmark.suite import Row
from models.plotting import Axis, Line, draw_chart


def draw_curve(rows: Iterable[Row], title: str) -> str:
    """Return an SVG document of the forced shares of ``rows``, one line for each network, engine and batch."""
    series: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.routing.endswith("of the blocks"):
            series.setdefault((row.architecture, f"batch {row.batch}, {row.engine}"), []).append(row)
    lines = []
    for (architecture, note), members in series.items():
        members.sort(key=attrgetter("mac_share"))
        points = [(row.mac_share, row.wall_share) for row in members]
        quartiles = [(row.wall_share_low, row.wall_share_high) for row in members]
        lines.append(Line(architecture, points, note, quartiles))
    top = max([1.05, *(high for line in lines for _, high in line.spread)])
    return draw_chart(
        title,
        Axis.of_numbers("share of dense multiply-adds", 0, 1.05, 0.25),
        Axis.of_numbers("share of dense time", 0, top, 0.25),
        lines,
        height=400,
        diagonal=True,
    )
