"""The comparison of a cascade with its rivals as tables, as a chart and as a file."""

import json
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from models.cascade.frontier import FrontierPoint, most_within
from models.plotting import Axis, Line, draw_chart

SHOWN_MARGINS = (0.3, 0.5, 0.6, 0.8)


class PublishedNetwork(BaseModel):
    """A published static network for CIFAR-10: MACs in millions, top-1 accuracy in percent, and the source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    macs: float
    accuracy: float
    source: str


@cache
def published_networks() -> list[PublishedNetwork]:
    """Return the published static networks that the chart shows."""
    content = tomllib.loads(Path(__file__).with_name("published.toml").read_text())
    return TypeAdapter(list[PublishedNetwork]).validate_python(content["networks"])


def draw_points(points: Sequence[FrontierPoint], margins: Sequence[float] = SHOWN_MARGINS) -> str:
    """Return the points as a Markdown table: every network alone and every cascade at some margins.

    Gains are in percentage points, relative to the last stage alone.
    """
    reference = last_stage(points)
    lines = [
        "| system | margin | escalated | top-1 | MACs | over the last stage (standard error) |",
        "|---|---|---|---|---|---|",
    ]
    for point in points:
        if point.last is None or point.margin in margins:
            margin, escalated = (f"{point.margin:g}", f"{point.escalated:.1%}") if point.last else ("", "")
            lines.append(
                f"| {point.system} | {margin} | {escalated} | {point.accuracy:.2%} | {point.macs / 1e6:.1f} M | "
                f"{describe_gain(point, reference)} |"
            )
    return "\n".join(lines)


def draw_budgets(points: Sequence[FrontierPoint], budgets: Sequence[float]) -> str:
    """Return a Markdown table of every system within each budget, in MACs of an image.

    Each system has the largest margin that keeps the budget. Gains are those of the first system, the cascade itself,
    over the others, in percentage points.
    """
    own = next(point.system for point in points if point.last)
    lines = [
        "| at most | system | margin | top-1 | MACs | gain of the cascade (standard error) |",
        "|---|---|---|---|---|---|",
    ]
    for budget in budgets:
        within = most_within(points, budget)
        cascade = next((point for point in within if point.system == own), None)
        for point in sorted(within, key=lambda point: -point.accuracy):
            gain = "" if cascade is None or point is cascade else describe_gain(cascade, point)
            margin = f"{point.margin:g}" if point.last else ""
            lines.append(
                f"| {budget / 1e6:g} M | {point.system} | {margin} | {point.accuracy:.2%} | {point.macs / 1e6:.1f} M | "
                f"{gain} |"
            )
    return "\n".join(lines)


def describe_gain(point: FrontierPoint, other: FrontierPoint) -> str:
    """Return the gain of a point over another as text, for instance "+0.17 (0.15)"."""
    gain, error = point.gain_over(other)
    return f"{100 * gain:+.2f} ({100 * error:.2f})"


def last_stage(points: Sequence[FrontierPoint]) -> FrontierPoint:
    """Return the point of the last stage alone."""
    name = next(point.last for point in points if point.last)
    return next(point for point in points if point.last is None and point.first == name)


def draw_frontier(points: Sequence[FrontierPoint], dataset: str) -> str:
    """Return top-1 accuracy over MACs as an SVG document. For CIFAR-10 it shows published static networks too."""
    systems = dict.fromkeys(point.system for point in points if point.last)
    lines = [
        Line(system, [coordinates(point) for point in points if point.system == system], joined=True)
        for system in systems
    ]
    networks = [coordinates(point) for point in points if point.last is None]
    lines.append(Line("each network alone", networks, joined=False))
    if dataset == "cifar10":
        known = [(network.macs, network.accuracy) for network in published_networks()]
        lines.append(Line("published static networks", known, joined=False))
    return draw_chart("Accuracy over MACs", Axis("MACs of an image, millions"), Axis("top-1 accuracy, %"), lines)


def coordinates(point: FrontierPoint) -> tuple[float, float]:
    """Return MACs in millions and accuracy in percent."""
    return point.macs / 1e6, 100 * point.accuracy


def write_points(points: Sequence[FrontierPoint], about: dict[str, object], file: Path) -> None:
    """Write the points as JSON, with ``about``, which says how they were measured."""
    rows = [
        {
            "system": point.system,
            "margin": point.margin,
            "escalated": point.escalated,
            "accuracy": point.accuracy,
            "macs": point.macs,
        }
        for point in points
    ]
    file.write_text(json.dumps({**about, "points": rows}, indent=1) + "\n")
