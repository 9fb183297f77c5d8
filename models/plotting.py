"""Charts as SVG documents: lines, columns and ranges on common axes. No scripts, no files beside them.

A chart is 480 units wide and meant to be read on a telephone too; it follows the reader's light or dark theme, and
is light in print. It may stand alone or be pasted into HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LEFT, TOP, RIGHT = 480, 64, 44, 16
LEFT_OF_NAMES = 116
"""Where the y axis has names and no label of its own."""
BELOW, ENTRY, ROW = 56, 22, 22
"""Heights in units: axis labels under the plot, a legend's entry, a named row."""
QUOTED = {'"': "&quot;"}
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#64748b")
STYLE = (
    "<style>.chart{color:#1e293b}.chart text{fill:currentColor}.chart .paper{fill:#fff}.chart .quiet{fill:#64748b}"
    ".chart .grid{stroke:#e2e8f0}.chart .guide{stroke:#94a3b8;stroke-dasharray:5 4}"
    "@media screen and (prefers-color-scheme:dark){.chart{color:#e2e8f0}.chart .paper{fill:#0f172a}"
    ".chart .quiet{fill:#94a3b8}.chart .grid{stroke:#334155}.chart .guide{stroke:#64748b}}</style>"
)


@dataclass(frozen=True)
class Axis:
    """What an axis shows, from where to where, and its ticks: places and texts."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def of_numbers(cls, label: str, low: float, high: float, step: float, form: str = "g") -> "Axis":
        """Return an axis with a tick at every multiple of ``step`` between ``low`` and ``high``."""
        first, last = int(-(-low // step)), int(high / step + 1e-9)
        return cls(
            label, low, high, tuple((i * step, format(round(i * step, 9), form)) for i in range(first, last + 1))
        )

    @classmethod
    def of_names(cls, label: str, names: Sequence[str]) -> "Axis":
        """Return an axis with the names at 0, 1, 2, ... ; an empty name leaves its place without a tick."""
        return cls(label, -0.5, len(names) - 0.5, tuple((i, name) for i, name in enumerate(names) if name))


@dataclass(frozen=True)
class Line:
    """Points joined by a line, or left apart; ``spread`` are the lower and upper ends of their whiskers."""

    name: str
    points: Sequence[tuple[float, float]]
    note: str = ""
    spread: Sequence[tuple[float, float]] = ()
    joined: bool = True


@dataclass(frozen=True)
class Columns:
    """Columns from 0 to their heights at x = 0, 1, 2, ...; ``groups`` says which take one colour: 0, 0, 1, ..."""

    name: str
    heights: Sequence[float]
    note: str = ""
    groups: Sequence[int] = ()


@dataclass(frozen=True)
class Ranges:
    """Rows at y = 0, 1, 2, ...: a thin bar between two outer quantiles, a thick one between inner ones, a dot."""

    name: str
    rows: Sequence[tuple[float, float, float, float, float]]
    note: str = ""


Mark = Line | Columns | Ranges


@dataclass(frozen=True)
class Plane:
    """The plot's area: from values to units of the picture."""

    x: Axis
    y: Axis
    height: float

    @property
    def left(self) -> int:
        return LEFT if self.y.label else LEFT_OF_NAMES

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return round(self.left + across * (WIDTH - self.left - RIGHT), 1), round(TOP + (1 - up) * self.height, 1)


def draw_chart(
    title: str, x: Axis, y: Axis, marks: Sequence[Mark], *, height: float = 280, diagonal: bool = False
) -> str:
    """Return an SVG document. ``diagonal`` draws y = x; marks that have a name stand in the legend."""
    if any(isinstance(mark, Ranges) for mark in marks):
        height = ROW * (y.high - y.low)
    plane = Plane(x, y, height)
    parts = [draw_frame(title, plane)]
    if diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        parts.append(
            f'<path class="guide" fill="none" d="M{join(plane.place(low, low))}L{join(plane.place(high, high))}"/>'
        )
    parts += [draw_mark(mark, COLOURS[number % len(COLOURS)], plane) for number, mark in enumerate(marks)]
    bottom = TOP + height + BELOW
    legend = [(mark, COLOURS[number % len(COLOURS)]) for number, mark in enumerate(marks) if mark.name]
    for number, (mark, colour) in enumerate(legend):
        parts.append(draw_entry(mark, colour, bottom + ENTRY * number))
    total = bottom + ENTRY * len(legend)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {total:g}" width="{WIDTH}" '
        f'height="{total:g}" role="img" aria-label="{escape(title, QUOTED)}" '
        f'font-family="system-ui, sans-serif" font-size="13">'
        f'{STYLE}<rect class="paper" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )


def join(place: tuple[float, float]) -> str:
    return f"{place[0]:g} {place[1]:g}"


def draw_frame(title: str, plane: Plane) -> str:
    """Return title, grid, ticks and the axes' labels."""
    right, bottom = WIDTH - RIGHT, TOP + plane.height
    parts = [f'<text x="8" y="24" font-size="15" font-weight="600">{escape(title)}</text>']
    for at, text in plane.x.ticks:
        x, _ = plane.place(at, plane.y.low)
        parts.append(
            f'<path class="grid" d="M{x} {TOP}V{bottom}"/>'
            f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{escape(text)}</text>'
        )
    for at, text in plane.y.ticks:
        _, y = plane.place(plane.x.low, at)
        parts.append(
            f'<path class="grid" d="M{plane.left} {y}H{right}"/>'
            f'<text x="{plane.left - 6}" y="{y + 4.5}" text-anchor="end">{escape(text)}</text>'
        )
    across, down = (plane.left + right) / 2, TOP + plane.height / 2
    parts.append(
        f'<text class="quiet" x="{across}" y="{bottom + 40}" text-anchor="middle">{escape(plane.x.label)}</text>'
        f'<text class="quiet" transform="translate(16 {down}) rotate(-90)" text-anchor="middle">'
        f"{escape(plane.y.label)}</text>"
    )
    return "".join(parts)


def draw_mark(mark: Mark, colour: str, plane: Plane) -> str:
    if isinstance(mark, Line):
        return draw_line(mark, colour, plane)
    if isinstance(mark, Columns):
        return draw_columns(mark, colour, plane)
    return draw_ranges(mark, colour, plane)


def draw_line(line: Line, colour: str, plane: Plane) -> str:
    places = [plane.place(x, y) for x, y in line.points]
    parts = []
    if line.joined:
        joined = " ".join(f"{x:g},{y:g}" for x, y in places)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for (x, _), (low, high) in zip(line.points, line.spread, strict=False):
        parts.append(f'<path d="M{join(plane.place(x, low))}L{join(plane.place(x, high))}" stroke="{colour}"/>')
    parts += [f'<circle cx="{x:g}" cy="{y:g}" r="3.2" fill="{colour}"/>' for x, y in places]
    return "".join(parts)


def draw_columns(columns: Columns, colour: str, plane: Plane) -> str:
    parts = []
    for number, value in enumerate(columns.heights):
        fill = COLOURS[columns.groups[number] % len(COLOURS)] if columns.groups else colour
        left, top = plane.place(number - 0.42, value)
        right, bottom = plane.place(number + 0.42, max(0.0, plane.y.low))
        parts.append(
            f'<rect x="{left:g}" y="{min(top, bottom):g}" width="{right - left:.4g}" height="{abs(bottom - top):.4g}" '
            f'fill="{fill}"/>'
        )
    return "".join(parts)


def draw_ranges(ranges: Ranges, colour: str, plane: Plane) -> str:
    parts = []
    for number, (least, low, middle, high, most) in enumerate(ranges.rows):
        x, y = plane.place(middle, number)
        for start, end, thickness in ((least, most, 2), (low, high, 9)):
            (left, _), (right, _) = plane.place(start, number), plane.place(end, number)
            parts.append(
                f'<path d="M{left:g} {y:g}H{right:g}" stroke="{colour}" stroke-width="{thickness}" opacity="0.55"/>'
            )
        parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="{colour}"/>')
    return "".join(parts)


def draw_entry(mark: Mark, colour: str, y: float) -> str:
    """Return a mark's entry in the legend: its name and, less loud, its note."""
    note = f' <tspan class="quiet">{escape(mark.note)}</tspan>' if mark.note else ""
    return (
        f'<circle cx="{LEFT}" cy="{y + 6}" r="5" fill="{colour}"/>'
        f'<text x="{LEFT + 12}" y="{y + 10.5}">{escape(mark.name)}{note}</text>'
    )
