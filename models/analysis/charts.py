"""The charts of an analysis."""

from models.analysis.schema import AlterationEffect, Analysis
from models.checkpoint import CalibrationPoint
from models.plotting import Axis, Bars, Line, Mark, Ranges, draw_chart

STRENGTHS = {
    "scale": "size of the image relative to the original",
    "brightness": "brightness relative to the original",
    "contrast": "contrast relative to the original",
    "blur": "standard deviation of the blur, % of the width",
}
MOST_TICKS = 24
"""The largest number of bars that all have a tick."""
MOST_LETTERS = 14
"""The most letters of a class name beside a chart."""
FEWEST_IMAGES = 20
"""The accuracy of fewer images is not drawn."""


def draw_charts(analysis: Analysis, calibration: list[CalibrationPoint]) -> dict[str, str]:
    """Return SVG documents by the names of their files without the suffix."""
    charts = {
        "blocks": draw_histogram(analysis),
        "classes": draw_classes(analysis),
        "rates": draw_rates(analysis),
        "paths": draw_paths(analysis),
        "appearance": draw_appearance(analysis),
        **{effect.name: draw_alteration(effect, analysis.blocks) for effect in analysis.altered},
        "flips": draw_flips(analysis),
        "reliability": draw_reliability(analysis),
    }
    if analysis.execution_benefit:
        charts["benefit"] = draw_execution_benefit(analysis)
    if analysis.attacks:
        charts["attacks"] = draw_attacks(analysis)
    if calibration:
        charts["budget"] = draw_calibration(calibration)
    return charts


def block_names(count: int) -> list[str]:
    """Return 1, 2, ... as tick labels. Of many blocks, only the first and every fifth have one."""
    return [str(number + 1) if count <= MOST_TICKS or number % 5 == 4 or number == 0 else "" for number in range(count)]


def draw_histogram(analysis: Analysis) -> str:
    """Draw how many images execute each number of blocks, and their accuracy."""
    accuracies = [
        (blocks - 1.0, accuracy)
        for blocks, accuracy in enumerate(analysis.accuracy_by_blocks)
        if accuracy is not None and analysis.histogram[blocks] >= FEWEST_IMAGES
    ]
    return draw_chart(
        "Executed blocks per image",
        Axis("executed blocks", names=block_names(analysis.blocks)),
        Axis("share of images", 0, percent=True),
        [
            Bars("images", [count / analysis.images for count in analysis.histogram[1:]]),
            Line("accuracy", accuracies, f"{analysis.accuracy:.1%} of all images", right=True),
        ],
        right=Axis("accuracy", 0, 1.02, percent=True),
    )


def draw_classes(analysis: Analysis) -> str:
    """Draw the quantiles of the executed blocks of each class, the fewest on top."""
    classes = analysis.classes[::-1]
    return draw_chart(
        "Executed blocks by class",
        Axis("executed blocks"),
        Axis("", names=[shorten(routes.label) for routes in classes]),
        [Ranges("median, quartiles, 5 to 95 %", [routes.quantiles for routes in classes])],
    )


def shorten(label: str) -> str:
    """Return a label that fits beside a chart."""
    return label if len(label) <= MOST_LETTERS else f"{label[: MOST_LETTERS - 1]}…"


def draw_rates(analysis: Analysis) -> str:
    """Draw how often each block executes."""
    return draw_chart(
        "Execution rate of each block",
        Axis("block, coloured by group", names=block_names(analysis.blocks)),
        Axis("share of images", 0, 1, percent=True),
        [Bars("", analysis.execution_rate, groups=analysis.groups)],
    )


def draw_paths(analysis: Analysis) -> str:
    """Draw the share of images that take one of the most frequent paths."""
    total, sums = 0.0, []
    for rank, share in enumerate(analysis.path_shares):
        total += share
        sums.append((rank + 1.0, total))
    return draw_chart(
        f"{analysis.paths} distinct paths",
        Axis("most frequent paths", 0),
        Axis("share of images", 0, 1.02, percent=True),
        [Line("images that take one of them", sums)],
    )


def draw_appearance(analysis: Analysis) -> str:
    """Draw the executed blocks over fifths of the images by brightness, contrast and sharpness."""
    return draw_chart(
        "Executed blocks by appearance",
        Axis("fifths of the images", names=["lowest", "", "middle", "", "highest"]),
        Axis("mean executed blocks"),
        [
            Line(effect.name, list(enumerate(effect.blocks)), f"rank correlation {effect.correlation:+.2f}")
            for effect in analysis.appearance
        ],
    )


def draw_alteration(effect: AlterationEffect, blocks: int) -> str:
    """Draw the executed blocks, as a share of all, and the accuracy over the strength of an alteration."""
    shares = [each / blocks for each in effect.blocks]
    return draw_chart(
        f"The same images, altered in {effect.name}",
        Axis(STRENGTHS[effect.name], 0),
        Axis("share", 0, 1.02, percent=True),
        [
            Line("executed blocks", list(zip(effect.strengths, shares, strict=True))),
            Line("accuracy", list(zip(effect.strengths, effect.accuracy, strict=True))),
        ],
    )


def draw_flips(analysis: Analysis) -> str:
    """Draw the flip rates under small changes to the image."""
    rates = analysis.flips[::-1]
    marks: list[Mark] = [
        Line(name, [(value, place) for place, value in enumerate(values)], joined=False)
        for name, values in (
            ("decisions that flip", [rate.decisions for rate in rates]),
            ("images that change route", [rate.routes for rate in rates]),
            ("images that change class", [rate.classes for rate in rates]),
        )
    ]
    names = [rate.change.removeprefix("JPEG, ").replace("quality", "JPEG") for rate in rates]
    return draw_chart("Flips under small changes", Axis("share", 0, percent=True), Axis("", names=names), marks)


def draw_reliability(analysis: Analysis) -> str:
    """Draw how often blocks execute in altered copies over the execute probability of their gates."""
    return draw_chart(
        "Calibration of the gate probabilities",
        Axis("execute probability of the gate", 0, 1),
        Axis("executed in altered copies", 0, 1),
        [
            Line("decisions", [(each.probability, each.executed) for each in analysis.reliability]),
            Line("share of all decisions", [(each.probability, each.share) for each in analysis.reliability]),
        ],
        diagonal=True,
    )


def draw_execution_benefit(analysis: Analysis) -> str:
    """Draw the decrease of the cross-entropy by executing a block over the execute probability of its gate."""
    return draw_chart(
        "Benefit of executing a block",
        Axis("execute probability of the gate", 0, 1),
        Axis("decrease of the cross-entropy"),
        [Line("", [(each.probability, each.gain) for each in analysis.execution_benefit])],
    )


def draw_attacks(analysis: Analysis) -> str:
    """Draw the MACs before and after random noise and adversarial attacks."""
    attacks = analysis.attacks[::-1]
    return draw_chart(
        "Adversarial inputs",
        Axis("share of dense MACs", 0, 1.02, percent=True),
        Axis("", names=[f"{'attack' if each.kind == 'attack' else 'noise'} {each.bound:g}" for each in attacks]),
        [
            Line("before", [(each.mac_share_before, place) for place, each in enumerate(attacks)], joined=False),
            Line("after", [(each.mac_share_after, place) for place, each in enumerate(attacks)], joined=False),
            Line("accuracy after", [(each.accuracy_after, place) for place, each in enumerate(attacks)], joined=False),
        ],
        height=240,
    )


def draw_calibration(calibration: list[CalibrationPoint]) -> str:
    """Draw accuracy and MACs over the execute threshold."""
    points = sorted(calibration, key=lambda point: point.threshold)
    return draw_chart(
        "Accuracy and MACs by execute threshold, validation images",
        Axis("execute threshold", 0, 1),
        Axis("share", 0, 1.02, percent=True),
        [
            Line("accuracy", [(point.threshold, point.accuracy) for point in points]),
            Line("MACs", [(point.threshold, point.mac_share) for point in points], "share of the dense network's"),
        ],
    )
