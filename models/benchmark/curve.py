"""The time-over-MACs curve: on the diagonal, time is proportional to the MACs."""

from collections.abc import Iterable
from operator import attrgetter

from models.benchmark.suite import Row
from models.plotting import Axis, Line, draw_chart


def draw_curve(rows: Iterable[Row], title: str) -> str:
    """Return a chart of the forced routes as SVG, with one line for each network, engine and batch size."""
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
    return draw_chart(
        title, Axis("share of dense MACs", 0), Axis("share of dense time", 0), lines, height=460, diagonal=True
    )
