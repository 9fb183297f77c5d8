"""What results files say together: the paper's table with this project's column, and accuracy over computation."""

from collections.abc import Callable, Iterable
from itertools import groupby
from statistics import mean

from models.checkpoint import Evaluation
from models.experiments.results import Result
from models.experiments.row import PUBLISHED, Published, Row
from models.experiments.rows import all_groups
from models.plotting import Axis, Line, draw_chart
from models.training.soup import SOUP

HEADING = """\
| network | row | what | published: top-1 @ computation percentage | top-1 @ computation percentage \
| share of dense MACs | measured on | seeds | schedule | hours | processor hours |
|---|---|---|---|---|---|---|---|---|---|---|
"""
DRAWN = "cifar10_38"


def all_rows() -> dict[str, Row]:
    """Return the rows of all groups by name."""
    return {row.name: row for group in all_groups("short").values() for row in group}


def together(results: Iterable[Result]) -> list[list[Result]]:
    """Return the results of each network, row, schedule and split, seeds together, in the table's order."""
    order = list(all_rows())

    def place(result: Result) -> tuple[bool, str, int, str, str, str]:
        known = order.index(result.row) if result.row in order else len(order)
        return result.network != DRAWN, result.network, known, result.row, result.schedule, result.figures.split

    return [list(members) for _, members in groupby(sorted(results, key=place), place)]


def draw_report(results: Iterable[Result]) -> str:
    """Return the table as Markdown; figures of several seeds are means, with the least and the most."""
    return HEADING + "".join(draw_row(members) for members in together(results))


def draw_row(members: list[Result]) -> str:
    first = members[0]
    computation = spread([result.figures.computation_percentage for result in members], "{:.1f}")
    cells = [
        first.network,
        f"`{first.row}`",
        first.title,
        describe_published(PUBLISHED.get((first.network, first.row))),
        f"{spread([100 * result.figures.accuracy for result in members], '{:.2f}')} @ {computation}",
        spread([share(result.figures) for result in members], "{:.3f}"),
        f"{first.figures.images:,} {first.figures.split.replace('_', '-')} images",
        ", ".join(str(seed) for seed in sorted(result.seed for result in members)),
        describe_schedule(first),
        hours(members, lambda result: result.hours),
        hours(members, lambda result: result.cpu_hours),
    ]
    return f"| {' | '.join(cells)} |\n"


def share(figures: Evaluation) -> float:
    return figures.macs / figures.dense_macs


def spread(values: list[float], form: str) -> str:
    """Return the mean of several values, with the least and the most."""
    written = form.format(mean(values))
    return written if len(values) == 1 else f"{written} ({form.format(min(values))}-{form.format(max(values))})"


def describe_published(published: Published | None) -> str:
    if published is None:
        return ""
    accuracy = "" if published.accuracy is None else f"{published.accuracy:.2f}"
    computation = "" if published.computation is None else f"@ {published.computation:.1f}"
    return f"{accuracy} {computation} ({published.source})".strip()


def describe_schedule(result: Result) -> str:
    if result.recipe["name"] == SOUP:
        return f"the mean of {result.start}"
    iterations = result.recipe.get("iterations")
    epochs = result.recipe["epochs"]
    length = f"{iterations:,} steps" if iterations else f"{epochs} epoch{'s' * (epochs > 1)}"
    start = f", from {result.start}" if result.start else ""
    return f"{result.recipe['name']}, {length} of {result.train_images:,} images{start}"


def hours(members: list[Result], of: Callable[[Result], float | None]) -> str:
    """Return the mean hours of a run, if they are known."""
    known = [value for result in members if (value := of(result)) is not None]
    return f"{mean(known):.2f}" if known else ""


def draw_figure(results: Iterable[Result]) -> str:
    """Return accuracy over computation percentage of ResNet-38 on CIFAR-10 as an SVG document: a point a seed, and
    what is published.

    Ablations are left out: their schedules are shorter.
    """
    lines = []
    apart = {row.name for row in all_rows().values() if row.group != "table"}
    for members in together(result for result in results if result.network == DRAWN and result.row not in apart):
        points = [(result.figures.computation_percentage, 100 * result.figures.accuracy) for result in members]
        lines.append(Line(members[0].title, points, describe_schedule(members[0]), joined=False))
    known = [
        (point.computation, point.accuracy)
        for (network, _), point in PUBLISHED.items()
        if network == DRAWN and point.accuracy is not None and point.computation is not None
    ]
    lines.append(Line("SkipNet", known, "Wang et al. 2018", joined=False))
    return draw_chart(
        "Accuracy over computation, ResNet-38 on CIFAR-10",
        Axis("computation percentage (the paper's)", 0, 103),
        Axis("top-1 accuracy, %"),
        lines,
        height=400,
    )
