"""The picture of results files: accuracy over computation percentage."""

from collections.abc import Iterable

from models.experiments.catalogue import all_rows
from models.experiments.published import published_figures
from models.experiments.results import Result
from models.experiments.results_table import describe_schedule, join_seeds
from models.plotting import Axis, Line, draw_chart

NETWORK = "cifar10_38"


def draw_curve(results: Iterable[Result]) -> str:
    """Draw accuracy over computation percentage of ResNet-38 on CIFAR-10 as an SVG document.

    Each seed is a point, beside the published figures. Rows outside the group "table" are left out, because their
    schedules differ.
    """
    lines = []
    other_groups = {name for name, row in all_rows("short").items() if row.group != "table"}
    drawn = [result for result in results if result.network == NETWORK and result.row not in other_groups]
    for seeds in join_seeds(drawn):
        points = [(result.figures.computation_percentage, 100 * result.figures.accuracy) for result in seeds]
        lines.append(Line(seeds[0].title, points, describe_schedule(seeds[0]), joined=False))
    known = [
        (figures.computation, figures.accuracy)
        for figures in published_figures().values()
        if figures.network == NETWORK and figures.accuracy is not None and figures.computation is not None
    ]
    lines.append(Line("SkipNet", known, "Wang et al. 2018", joined=False))
    return draw_chart(
        "Accuracy over computation, ResNet-38 on CIFAR-10",
        Axis("computation percentage (the paper's)", 0, 103),
        Axis("top-1 accuracy, %"),
        lines,
        height=400,
    )
