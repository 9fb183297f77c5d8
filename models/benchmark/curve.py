"""The curve wall share over MAC share as an SVG picture: on the diagonal, time follows multiply-adds."""

from collections.abc import Iterable
from xml.sax.saxutils import escape

from models.benchmark.suite import Row

SIDE, LEFT, TOP, RIGHT, BOTTOM = 420, 64, 48, 250, 56
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#475569")
Series = dict[str, list[Row]]


def draw_curve(rows: Iterable[Row], title: str) -> str:
    """Return an SVG document of the forced shares of ``rows``, one line for each network, engine and batch."""
    series = group(rows)
    top = max([1.0, *(row.wall_share_high for line in series.values() for row in line)])
    scale = SIDE / top
    parts = [frame(title, top, scale)]
    for number, (name, line) in enumerate(series.items()):
        parts.append(draw_series(name, sorted(line, key=lambda row: row.mac_share), number, scale))
    width, height = LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#1e293b">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def group(rows: Iterable[Row]) -> Series:
    series: Series = {}
    for row in rows:
        if row.routing.endswith("of the blocks"):
            name = f"{row.architecture}, batch {row.batch}, {row.engine}"
            series.setdefault(name, []).append(row)
    return series


def place(mac_share: float, wall_share: float, scale: float) -> tuple[float, float]:
    return round(LEFT + mac_share * scale, 1), round(TOP + SIDE - wall_share * scale, 1)


def frame(title: str, top: float, scale: float) -> str:
    """Return title, axes, grid and the diagonal."""
    parts = [f'<text x="{LEFT}" y="26" font-size="16" font-weight="600">{escape(title)}</text>']
    step = 0.25
    for index in range(int(top / step) + 1):
        share = index * step
        x, y = place(share, share, scale)
        parts.append(
            f'<path d="M{x} {TOP}V{TOP + SIDE}M{LEFT} {y}H{LEFT + SIDE}" stroke="#e2e8f0"/>'
            f'<text x="{x}" y="{TOP + SIDE + 18}" text-anchor="middle">{share:g}</text>'
            f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{share:g}</text>'
        )
    x, y = place(top, top, scale)
    parts.append(f'<path d="M{LEFT} {TOP + SIDE}L{x} {y}" stroke="#94a3b8" stroke-dasharray="5 4"/>')
    middle = TOP + SIDE / 2
    parts.append(
        f'<text x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 42}" text-anchor="middle">share of dense multiply-adds</text>'
        f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">share of dense time</text>'
    )
    return "".join(parts)


def draw_series(name: str, line: list[Row], number: int, scale: float) -> str:
    """Return a series: its line, quartiles as whiskers, and its entry in the legend."""
    colour = COLOURS[number % len(COLOURS)]
    points = [place(row.mac_share, row.wall_share, scale) for row in line]
    parts = [f'<polyline points="{" ".join(f"{x},{y}" for x, y in points)}" fill="none" stroke="{colour}"/>']
    for row, (x, y) in zip(line, points, strict=True):
        low, high = (place(row.mac_share, share, scale)[1] for share in (row.wall_share_low, row.wall_share_high))
        parts.append(
            f'<path d="M{x} {low}V{high}" stroke="{colour}"/><circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>'
        )
    y = TOP + 12 + 40 * number
    network, rest = name.split(", ", 1)
    parts.append(
        f'<circle cx="{LEFT + SIDE + 20}" cy="{y - 4}" r="5" fill="{colour}"/>'
        f'<text x="{LEFT + SIDE + 32}" y="{y}">{escape(network)}</text>'
        f'<text x="{LEFT + SIDE + 32}" y="{y + 16}" fill="#64748b">{escape(rest)}</text>'
    )
    return "".join(parts)
