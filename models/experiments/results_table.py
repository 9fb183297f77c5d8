"""The table of results files: the paper's, with a column for this project."""

from collections.abc import Callable, Iterable
from itertools import groupby
from statistics import mean

from models.checkpoint import Evaluation
from models.experiments.catalogue import all_rows
from models.experiments.published import Published, published_figures
from models.experiments.results import Result
from models.training.soup import SOUP

FIRST_NETWORK = "cifar10_38"
HEADING = """\
| network | row | what | published: top-1 @ computation percentage | top-1 @ computation percentage \
| share of dense MACs | measured on | seeds | schedule | hours | processor hours |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def draw_table(results: Iterable[Result]) -> str:
    """Return the table as Markdown. Figures of several seeds are means, with the least and the greatest."""
    return HEADING + "".join(draw_line(seeds) for seeds in join_seeds(results))


def join_seeds(results: Iterable[Result]) -> list[list[Result]]:
    """Return the results in the order of the table. Those that differ only in the seed are one list."""
    order = list(all_rows("short"))

    def place(result: Result) -> tuple[bool, str, int, str, str, str]:
        known = order.index(result.row) if result.row in order else len(order)
        return result.network != FIRST_NETWORK, result.network, known, result.row, result.schedule, result.figures.split

    return [list(seeds) for _, seeds in groupby(sorted(results, key=place), place)]


def draw_line(seeds: list[Result]) -> str:
    first = seeds[0]
    accuracy = describe_range([100 * result.figures.accuracy for result in seeds], "{:.2f}")
    computation = describe_range([result.figures.computation_percentage for result in seeds], "{:.1f}")
    cells = [
        first.network,
        f"`{first.row}`",
        first.title,
        describe_published(published_figures().get((first.network, first.row))),
        f"{accuracy} @ {computation}",
        describe_range([mac_share(result.figures) for result in seeds], "{:.3f}"),
        f"{first.figures.images:,} {first.figures.split} images",
        ", ".join(str(seed) for seed in sorted(result.seed for result in seeds)),
        describe_schedule(first),
        mean_hours(seeds, lambda result: result.hours),
        mean_hours(seeds, lambda result: result.cpu_hours),
    ]
    return f"| {' | '.join(cells)} |\n"


def mac_share(figures: Evaluation) -> float:
    """Return the MACs as a share (0..1) of the dense network's."""
    return figures.macs / figures.dense_macs


def describe_range(values: list[float], form: str) -> str:
    """Return the mean of the values, with the least and the greatest if there are several."""
    written = form.format(mean(values))
    return written if len(values) == 1 else f"{written} ({form.format(min(values))}-{form.format(max(values))})"


def describe_published(published: Published | None) -> str:
    if published is None:
        return ""
    accuracy = "" if published.accuracy is None else f"{published.accuracy:.2f}"
    computation = "" if published.computation is None else f"@ {published.computation:.1f}"
    return f"{accuracy} {computation} ({published.source})".strip()


def describe_schedule(result: Result) -> str:
    """Return the recipe, its length, the number of training images and the start."""
    if result.recipe["name"] == SOUP:
        return f"soup of {result.start}"
    iterations = result.recipe.get("iterations")
    epochs = result.recipe["epochs"]
    length = f"{iterations:,} steps" if iterations else f"{epochs} epoch{'s' * (epochs > 1)}"
    start = f", from {result.start}" if result.start else ""
    return f"{result.recipe['name']}, {length} of {result.train_images:,} images{start}"


def mean_hours(seeds: list[Result], hours: Callable[[Result], float | None]) -> str:
    """Return the mean hours of the runs whose hours are known."""
    known = [value for result in seeds if (value := hours(result)) is not None]
    return f"{mean(known):.2f}" if known else ""
