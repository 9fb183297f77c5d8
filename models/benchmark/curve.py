"""The chart of time over MACs. On its diagonal, time is proportional to the MACs."""

from collections.abc import Iterable
from operator import attrgetter

from models.benchmark.suite import Measurement
from models.plotting import Axis, Line, draw_chart


def draw_curve(measurements: Iterable[Measurement], title: str) -> str:
    """Return an SVG chart of the forced routes with one line for each network, engine and batch size."""
    series: dict[tuple[str, str], list[Measurement]] = {}
    for each in measurements:
        if each.routing.endswith("of the blocks"):
            series.setdefault((each.architecture, f"batch {each.batch}, {each.engine}"), []).append(each)
    lines = []
    for (architecture, note), members in series.items():
        members.sort(key=attrgetter("mac_share"))
        points = [(each.mac_share, each.wall_share) for each in members]
        quartiles = [(each.wall_share_low, each.wall_share_high) for each in members]
        lines.append(Line(architecture, points, note, quartiles))
    return draw_chart(
        title, Axis("share of dense MACs", 0), Axis("share of dense time", 0), lines, height=460, diagonal=True
    )
