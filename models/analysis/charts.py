"""An analysis as charts."""

from models.analysis.study import Altered, Analysis
from models.checkpoint import CalibrationPoint
from models.plotting import Axis, Columns, Line, Mark, Ranges, draw_chart

STRENGTHS = {
    "scale": "size of the image, times its own",
    "brightness": "brightness, times the image's own",
    "contrast": "contrast, times the image's own",
    "blur": "deviation of the blur, % of the width",
}
MANY = 24
"""Columns beyond which only some are named."""


def draw_charts(analysis: Analysis, calibration: list[CalibrationPoint]) -> dict[str, str]:
    """Return SVG documents by name."""
    charts = {
        "blocks": draw_histogram(analysis),
        "classes": draw_classes(analysis),
        "rates": draw_rates(analysis),
        "paths": draw_paths(analysis),
        "looks": draw_looks(analysis),
        **{altered.name: draw_altered(altered, analysis.blocks) for altered in analysis.altered},
        "flips": draw_flips(analysis),
        "reliability": draw_reliability(analysis),
    }
    if analysis.worth:
        charts["worth"] = draw_worth(analysis)
        charts["attacks"] = draw_attacks(analysis)
    if calibration:
        charts["dial"] = draw_dial(calibration)
    return charts


def block_names(count: int) -> list[str]:
    """Return 1, 2, ... as names of columns, of which a chart of many shows every fifth."""
    return [str(number + 1) if count <= MANY or number % 5 == 4 or number == 0 else "" for number in range(count)]


def draw_histogram(analysis: Analysis) -> str:
    shares = [count / analysis.images for count in analysis.histogram[1:]]
    return draw_chart(
        "Blocks that an image executes",
        Axis.of_names("blocks executed", block_names(analysis.blocks)),
        share_axis("share", max(shares)),
        [
            Columns("images", shares),
            Line(
                "accuracy of these images",
                [
                    (blocks - 1, accuracy * top_of(max(shares)))
                    for blocks, accuracy in enumerate(analysis.accuracy_by_blocks)
                    if accuracy is not None and analysis.histogram[blocks] >= 20
                ],
                f"the top is 100 %; {analysis.accuracy:.1%} of all",
            ),
        ],
    )


def top_of(largest: float) -> float:
    """Return the end of an axis that holds ``largest``: the next of 0.1, 0.2, ... 1."""
    return min(1.0, (int(largest * 10 - 1e-9) + 1) / 10)


def share_axis(label: str, largest: float) -> Axis:
    top = top_of(largest)
    return Axis.of_numbers(label, 0, top, top / 4, ".0%" if top > 0.1 else ".1%")


def draw_classes(analysis: Analysis) -> str:
    # The y axis rises: rows from the last to the first, so that what executes least is on top.
    rows = analysis.classes[::-1]
    low, high = min(row.quantiles[0] for row in rows), max(row.quantiles[4] for row in rows)
    return draw_chart(
        "Blocks executed, by class",
        Axis.of_numbers("blocks executed", low - 0.5, high + 0.5, max(1, (high - low) // 8 + 1)),
        Axis.of_names("", [short(row.label) for row in rows]),
        [Ranges("median, quartiles, 5 to 95 %", [row.quantiles for row in rows])],
    )


def short(label: str) -> str:
    """Return as much of a label as the margin holds."""
    return label if len(label) <= 14 else f"{label[:13]}…"


def draw_rates(analysis: Analysis) -> str:
    return draw_chart(
        "How often each block executes",
        Axis.of_names("block, coloured by group", block_names(analysis.blocks)),
        Axis.of_numbers("share of images", 0, 1, 0.25, ".0%"),
        [Columns("", analysis.execution_rate, groups=analysis.groups)],
    )


def draw_paths(analysis: Analysis) -> str:
    total, sums = 0.0, []
    for rank, share in enumerate(analysis.path_shares):
        total += share
        sums.append((rank + 1.0, total))
    return draw_chart(
        f"{analysis.paths} distinct paths",
        Axis.of_numbers("most frequent paths", 0, 20, 5),
        Axis.of_numbers("share of images", 0, 1, 0.25, ".0%"),
        [Line("images that take one of them", sums)],
    )


def draw_looks(analysis: Analysis) -> str:
    lines = [
        Line(look.name, [(fifth, blocks) for fifth, blocks in enumerate(look.blocks)], f"rank {look.correlation:+.2f}")
        for look in analysis.looks
    ]
    return draw_chart(
        "Blocks executed, by how images look",
        Axis.of_names("fifths of the images", ["least", "", "middle", "", "most"]),
        blocks_axis([blocks for look in analysis.looks for blocks in look.blocks]),
        lines,
    )


def blocks_axis(values: list[float]) -> Axis:
    low, high = min(values), max(values)
    room = max(0.5, (high - low) * 0.15)
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 20) if (high - low + 2 * room) / step <= 8)
    return Axis.of_numbers("mean blocks executed", max(0.0, low - room), high + room, step)


def draw_altered(altered: Altered, blocks: int) -> str:
    """Return mean blocks and accuracy over the strength of an alteration, both as shares."""
    points = list(zip(altered.strengths, altered.blocks, altered.accuracy, strict=True))
    return draw_chart(
        f"The same images, altered in {altered.name}",
        Axis.of_numbers(STRENGTHS[altered.name], 0, altered.strengths[-1], altered.strengths[-1] / 4),
        Axis.of_numbers("share", 0, 1, 0.25, ".0%"),
        [
            Line("blocks executed", [(strength, executed / blocks) for strength, executed, _ in points]),
            Line("accuracy", [(strength, accuracy) for strength, _, accuracy in points]),
        ],
    )


def draw_flips(analysis: Analysis) -> str:
    rows = analysis.flips[::-1]
    names = [row.change.removeprefix("JPEG, ").replace("quality", "JPEG").replace("pixels", "px") for row in rows]
    marks: list[Mark] = [
        Line(name, [(value, place) for place, value in enumerate(values)], joined=False)
        for name, values in (
            ("decisions that flip", [row.decisions for row in rows]),
            ("images that take another route", [row.routes for row in rows]),
            ("images that are called something else", [row.classes for row in rows]),
        )
    ]
    largest = max(row.routes for row in rows)
    names_axis = Axis.of_names("", [name.replace("shift by ", "move ").replace("pixel", "px") for name in names])
    return draw_chart("A small change to the image", share_axis("share", largest), names_axis, marks)


def draw_reliability(analysis: Analysis) -> str:
    return draw_chart(
        "Do gates stand by their probability?",
        Axis.of_numbers("probability that the gate gave", 0, 1, 0.25),
        Axis.of_numbers("executed in altered copies", 0, 1, 0.25),
        [
            Line("decisions", [(row.probability, row.executed) for row in analysis.reliability]),
            Line("share of all decisions", [(row.probability, row.share) for row in analysis.reliability]),
        ],
        diagonal=True,
    )


def draw_worth(analysis: Analysis) -> str:
    points = [(row.probability, row.gain) for row in analysis.worth]
    low, high = min(0.0, *(gain for _, gain in points)), max(0.1, *(gain for _, gain in points))
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 100) if (high - low) / step <= 8)
    return draw_chart(
        "What executing a block is worth",
        Axis.of_numbers("probability that the gate gave", 0, 1, 0.25),
        Axis.of_numbers("cross-entropy saved", low - step / 2, high + step / 2, step),
        [Line("", points)],
    )


def draw_attacks(analysis: Analysis) -> str:
    rows = analysis.attacks
    return draw_chart(
        "Inputs made to burn compute",
        Axis.of_numbers("share of dense multiply-adds", 0, 1.01, 0.25, ".0%"),
        Axis.of_names("", [f"{'noise' if row.kind != 'attack' else 'attack'} {row.bound:g}" for row in rows[::-1]]),
        [
            Line("before", [(row.mac_share_before, place) for place, row in enumerate(rows[::-1])], joined=False),
            Line("after", [(row.mac_share_after, place) for place, row in enumerate(rows[::-1])], joined=False),
            Line("accuracy after", [(row.accuracy_after, place) for place, row in enumerate(rows[::-1])], joined=False),
        ],
        height=160,
    )


def draw_dial(calibration: list[CalibrationPoint]) -> str:
    points = sorted(calibration, key=lambda point: point.threshold)
    return draw_chart(
        "The compute dial, on held-out images",
        Axis.of_numbers("execute threshold", 0, 1, 0.25),
        Axis.of_numbers("share", 0, 1.01, 0.25, ".0%"),
        [
            Line("accuracy", [(point.threshold, point.accuracy) for point in points]),
            Line("multiply-adds", [(point.threshold, point.mac_share) for point in points], "of the dense network's"),
        ],
    )
