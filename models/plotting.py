"""Draw line, bar and range charts as SVG by matplotlib (extra ``analysis``).

The same data give the same bytes: the ids are hashed with a fixed salt, and the file has no date. Text is stored as
text, so a chart takes a few kilobytes. Charts are 480 units wide, which is readable on a phone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from models.errors import needs_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as MatplotlibAxis

WIDTH, HEIGHT, ROW_HEIGHT, LEGEND_HEIGHT = 480, 380, 24, 22
"""Size of a chart, of a row of ranges and of a legend entry, in CSS pixels."""
PIXELS_PER_INCH = 96
COLOURS = (
    *("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed"),
    *("#64748b", "#0891b2", "#65a30d", "#dc2626", "#92400e"),
)
STYLE: dict[Any, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "skipnet",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": "#94a3b8",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
    "path.simplify": False,
    "text.parse_math": False,
}
NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Axis:
    """An axis: its label, and its ends, which the data set by default.

    ``names`` are the labels at 0, 1, 2, ... An empty name gives no tick. ``percent`` shows 0.5 as 50%.
    """

    label: str
    low: float | None = None
    high: float | None = None
    percent: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """Points, which may be joined by a line.

    ``whiskers`` are the lower and upper ends of the error bars. ``right`` draws the line on the right axis.
    """

    name: str
    points: Sequence[tuple[float, float]]
    note: str = ""
    whiskers: Sequence[tuple[float, float]] = ()
    joined: bool = True
    right: bool = False


@dataclass(frozen=True)
class Bars:
    """Bars at x = 0, 1, 2, ... Bars of the same group number have the same colour."""

    name: str
    heights: Sequence[float]
    note: str = ""
    groups: Sequence[int] = ()


@dataclass(frozen=True)
class Ranges:
    """Rows of five quantiles at y = 0, 1, 2, ..., with a thin bar for the outer two and a thick one for the inner."""

    name: str
    rows: Sequence[tuple[float, float, float, float, float]]
    note: str = ""


Mark = Line | Bars | Ranges


def require_plotting() -> None:
    """Raise UserError with the install command if matplotlib is missing."""
    with needs_extra("analysis", "drawing charts"):
        import matplotlib.figure  # noqa: F401


def draw_chart(
    title: str,
    x: Axis,
    y: Axis,
    marks: Sequence[Mark],
    *,
    right: Axis | None = None,
    height: float = HEIGHT,
    diagonal: bool = False,
) -> str:
    """Return a chart as an SVG document.

    ``right`` is a second y axis. ``height`` is in CSS pixels, without the legend. ``diagonal`` adds the line y = x.
    Raises UserError if matplotlib is missing.
    """
    require_plotting()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = max((len(mark.rows) for mark in marks if isinstance(mark, Ranges)), default=0)
    named = [mark for mark in marks if mark.name]
    total = (100 + ROW_HEIGHT * rows if rows else height) + LEGEND_HEIGHT * len(named)
    with rc_context(STYLE):
        figure = Figure((WIDTH / PIXELS_PER_INCH, total / PIXELS_PER_INCH), layout="constrained")
        axes = figure.add_subplot()
        right_axes = axes.twinx() if right else axes
        axes.set_title(title, loc="left", x=0)
        if diagonal:
            axes.axline((0, 0), slope=1, color="#94a3b8", linestyle="--", linewidth=1)
        handles = [
            draw_mark(right_axes if isinstance(mark, Line) and mark.right else axes, mark, COLOURS[i % len(COLOURS)])
            for i, mark in enumerate(marks)
        ]
        set_axis(axes.xaxis, axes, x)
        set_axis(axes.yaxis, axes, y)
        if right:
            set_axis(right_axes.yaxis, right_axes, right)
            right_axes.grid(visible=False)
        if named:
            shown = [(handle, mark) for handle, mark in zip(handles, marks, strict=True) if mark.name]
            labels = [f"{mark.name} ({mark.note})" if mark.note else mark.name for _, mark in shown]
            figure.legend([handle for handle, _ in shown], labels, loc="outside lower left")
        file = StringIO()
        figure.savefig(file, format="svg", metadata=NO_METADATA)
    return file.getvalue()


def set_axis(target: "MatplotlibAxis", axes: "Axes", axis: Axis) -> None:
    """Apply label, ends and ticks of ``axis``."""
    from matplotlib.ticker import PercentFormatter

    horizontal = target is axes.xaxis
    target.set_label_text(axis.label)
    low, high = (-0.6, len(axis.names) - 0.4) if axis.names else (axis.low, axis.high)
    if horizontal:
        axes.set_xlim(low, high)
    else:
        axes.set_ylim(low, high)
    if axis.names:
        ticks = [(place, name) for place, name in enumerate(axis.names) if name]
        target.set_ticks([place for place, _ in ticks], labels=[name for _, name in ticks])
        target.grid(visible=not horizontal)
    elif axis.percent:
        target.set_major_formatter(PercentFormatter(1.0))


def draw_mark(axes: "Axes", mark: Mark, colour: str) -> Any:
    """Draw a mark, and return its handle for the legend."""
    if isinstance(mark, Line):
        return draw_line(axes, mark, colour)
    if isinstance(mark, Bars):
        colours = [COLOURS[group % len(COLOURS)] for group in mark.groups] or colour
        return axes.bar(range(len(mark.heights)), mark.heights, width=0.84, color=colours)
    return draw_ranges(axes, mark, colour)


def draw_line(axes: "Axes", line: Line, colour: str) -> Any:
    """Draw points, error bars and, if joined, the line through the points."""
    across, up = unzip(line.points)
    if line.whiskers:
        low, high = unzip(line.whiskers)
        axes.vlines(across, low, high, color=colour, linewidth=1)
    style = "-" if line.joined else "none"
    [handle] = axes.plot(across, up, color=colour, marker="o", markersize=4, linewidth=1.3, linestyle=style)
    return handle


def draw_ranges(axes: "Axes", ranges: Ranges, colour: str) -> Any:
    """Draw the quantiles of each row."""
    places = range(len(ranges.rows))
    lowest, low, median, high, highest = zip(*ranges.rows, strict=True)
    axes.hlines(places, lowest, highest, color=colour, linewidth=1.5, alpha=0.55)
    axes.hlines(places, low, high, color=colour, linewidth=6, alpha=0.55)
    [handle] = axes.plot(median, places, color=colour, marker="o", markersize=7, linestyle="none")
    return handle


def unzip(pairs: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the first and the second members of pairs."""
    known = list(pairs)
    return [first for first, _ in known], [second for _, second in known]
