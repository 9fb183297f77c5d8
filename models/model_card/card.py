"""The model card: a checkpoint's README.md, whose figures are written from config.json and analysis.json.

What stands between the two marks is written by `skipnet evaluate --write` and `skipnet analyze --write`; the rest is
for a person to write, and stays.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from models.analysis.analyze import block_groups
from models.analysis.schema import Analysis, read_analysis
from models.atomic_file import whole_file
from models.checkpoint import Checkpoint, CheckpointError, Evaluation, read_checkpoint
from models.importing.public_checkpoint import IMPORTED
from models.model_card.training_commands import draw_commands, shared
from models.training.soup import SOUP

CARD = "README.md"
BEGIN = "<!-- Figures: written by `skipnet evaluate --write` and `skipnet analyze --write`; the rest is yours. -->"
END = "<!-- End of figures. -->"
TEMPLATE = """\
# {name}, version {version}

What it is for, in a sentence or two.

{figures}

## Limits

- What it does badly, and what it was not made for.
"""
MANY_CLASSES = 20


def write_card(folder: Path) -> Path:
    """Write the figures into a checkpoint's card, and a card to fill in where it has none; return the card's path.

    Raises CheckpointError where an existing card has no marks to write between.
    """
    checkpoint, card = read_checkpoint(folder), folder / CARD
    figures = draw_figures(checkpoint, read_analysis(folder))
    if card.is_file():
        before, old, after = split_card(card)
        text = before + figures + after
        if text == before + old + after:
            return card
    else:
        text = TEMPLATE.format(name=checkpoint.name, version=checkpoint.version, figures=figures)
    with whole_file(card) as file:
        file.write(text.encode())
    return card


def split_card(card: Path) -> tuple[str, str, str]:
    """Return what stands before the figures, the figures with their marks, and what stands after."""
    text = card.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise CheckpointError(f"{card} has no place for figures: put these two lines there\n{BEGIN}\n{END}")
    start, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:start], text[start:end], text[end:]


def draw_figures(checkpoint: Checkpoint, analysis: Analysis | None) -> str:
    """Return the figures in Markdown, marks included."""
    parts = [draw_facts(checkpoint)]
    if checkpoint.config.evaluation is not None:
        parts.append(draw_evaluation(checkpoint, checkpoint.config.evaluation))
    if checkpoint.config.calibration:
        parts.append(draw_dial(checkpoint))
    if analysis is not None:
        parts.append(draw_analysis(analysis))
    parts.append(draw_training(checkpoint))
    body = "\n\n".join(parts)
    return f"{BEGIN}\n\n{body}\n\n{END}"


def draw_facts(checkpoint: Checkpoint) -> str:
    network, config = checkpoint.network, checkpoint.config
    weights = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    kinds = {"rnn": "recurrent gates", "feedforward_1": "FFGate-I gates", "feedforward_2": "FFGate-II gates"}
    gates = kinds[network.gate_kind] if network.gate_kind else "no gates"
    return (
        f"`{config.architecture}`: {len(network.blocks)} blocks, {gates}, {weights:.2f} million weights; "
        f"{len(config.labels)} classes, {config.input.width} x {config.input.height} pixels."
    )


def draw_evaluation(checkpoint: Checkpoint, evaluation: Evaluation) -> str:
    measured_on = f"On {evaluation.images:,} images of {evaluation.dataset}'s {evaluation.split} split"
    macs, dense = evaluation.macs / 1e6, evaluation.dense_macs / 1e6
    lines = ["| | |", "|---|---|", f"| top-1 accuracy | {evaluation.accuracy:.2%} |"]
    if not checkpoint.network.decision_count:
        lines.append(f"| multiply-adds an image | {macs:.2f} M |")
        return "\n".join(["## Figures", "", f"{measured_on}:", "", *lines, "", draw_classes(evaluation)])
    groups = zip(block_groups(checkpoint.macs.projections), [1.0, *evaluation.execution_rate], strict=True)
    rates = "; ".join(
        " ".join(f"{rate:.2f}" for _, rate in members) for _, members in groupby(groups, key=lambda pair: pair[0])
    )
    lines += [
        f"| decisions that skip | {evaluation.decisions_skipped:.1%} |",
        f"| computation percentage (the paper's) | {evaluation.computation_percentage:.1f} |",
        f"| multiply-adds an image, gates counted | {macs:.2f} M of {dense:.2f} M dense: "
        f"{1 - macs / dense:.1%} saved |",
        "",
        draw_classes(evaluation),
        "",
        f"How often each block runs, by group: {rates}.",
    ]
    at = f"{measured_on}, at execute threshold {evaluation.execute_threshold:g}:"
    return "\n".join(["## Figures", "", at, "", *lines])


def draw_classes(evaluation: Evaluation) -> str:
    rows = sorted(evaluation.accuracy_per_class.items(), key=lambda row: row[1])
    if len(rows) <= MANY_CLASSES:
        return (
            f"Per class: {', '.join(f'{label} {share:.1%}' for label, share in evaluation.accuracy_per_class.items())}."
        )
    worst, best = (", ".join(f"{label} {share:.0%}" for label, share in part) for part in (rows[:5], rows[:-6:-1]))
    return f"Lowest accuracy by class: {worst}; highest: {best}."


def draw_dial(checkpoint: Checkpoint) -> str:
    count = checkpoint.config.training.get("validation_images")
    images = f"{count:,} training images" if count else "training images"
    rows = [
        f"| {point.threshold:.6g} | {point.accuracy:.1%} | {point.computation_percentage:.1f} | {point.mac_share:.2f} |"
        for point in checkpoint.config.calibration
    ]
    return "\n".join(
        [
            f"The compute dial, on {images} that were held out:",
            "",
            "| execute threshold | accuracy | computation percentage | share of dense multiply-adds |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def draw_analysis(analysis: Analysis) -> str:
    """Return what `skipnet analyze` found."""
    some = [row for row in analysis.classes if row.images >= 10]
    easy, hard = some[:3], some[:-4:-1]
    settled = sum(rate < 0.01 or rate > 0.99 for rate in analysis.execution_rate[1:])
    lines = [
        f"Routes of {analysis.images:,} {analysis.split} images: {analysis.paths} distinct ones, the most frequent "
        f"taken by {analysis.path_shares[0]:.0%}; {settled} of {analysis.blocks - 1} gates decide alike for 99 %. "
        f"Fewest of {analysis.blocks} blocks: {', '.join(f'{row.label} {row.blocks:.1f}' for row in easy)}; "
        f"most: {', '.join(f'{row.label} {row.blocks:.1f}' for row in hard)}.",
        "",
        f"A small change to the image, {analysis.altered_images:,} images:",
        "",
        "| change | decisions that flip | images on another route | images called otherwise |",
        "|---|---|---|---|",
        *(f"| {row.change} | {row.decisions:.1%} | {row.routes:.1%} | {row.classes:.1%} |" for row in analysis.flips),
    ]
    if analysis.attacks:
        lines += [
            "",
            f"Inputs made to burn compute (ILFO, Haque et al., CVPR 2020; projected gradient steps on "
            f"{analysis.attacks[0].images} images, every value moved by at most so many of 255):",
            "",
            "| change | share of dense multiply-adds | of the saving, taken back | accuracy |",
            "|---|---|---|---|",
            *(
                f"| {row.kind}, {row.bound:g} | {row.mac_share_before:.1%} to {row.mac_share_after:.1%} "
                f"| {row.saving_taken_back:.0%} | {row.accuracy_before:.0%} to {row.accuracy_after:.0%} |"
                for row in analysis.attacks
            ),
        ]
    return "\n".join(lines)


def draw_training(checkpoint: Checkpoint) -> str:
    """Return data, recipe and commands."""
    training, config = checkpoint.config.training, checkpoint.config
    lines = ["## How it was made", ""]
    stages: list[dict[str, Any]] = training.get("stages", [])
    if stages:
        lines += [
            f"{training.get('train_images', 0):,} images of {training.get('dataset')}, seed {training.get('seed')}, "
            f"{training.get('precision', 'float32')}. By stage:",
            "",
            "| stage | recipe | length | batch | rate | schedule | weight decay |",
            "|---|---|---|---|---|---|---|",
            *draw_stages(stages, config.architecture),
            "",
        ]
    where = f"models/repository/{checkpoint.name}/{checkpoint.version}"
    commands = draw_commands(config)
    temper = " --temper" if "temperature" in config.training else ""
    if checkpoint.network.decision_count:
        commands.append(f"skipnet evaluate {where}{temper} --calibrate --write")
        commands.append(f"skipnet analyze {where} DATA --output report --write")
    else:
        commands.append(f"skipnet evaluate {where}{temper} --write")
    return "\n".join([*lines, "```", *commands, "```"])


def draw_stages(stages: Sequence[dict[str, Any]], architecture: str) -> list[str]:
    """Return a row a stage; of networks that went into a mean, those that they don't share."""
    rows = []
    for stage in stages:
        if stage["stage"] != SOUP:
            rows.append(draw_stage(stage, architecture))
            continue
        for number, other in enumerate(stage["of"], 2):
            apart = other[shared(stages, other) :]
            rows += [draw_stage(each | {"name": f"{each['name']}, network {number}"}, architecture) for each in apart]
        rows.append(f"| mean of the {1 + len(stage['of'])} networks | | | | | | |")
    return rows


def draw_stage(stage: dict[str, Any], architecture: str) -> str:
    if stage["stage"] == IMPORTED:
        return f"| imported | {stage['name']} | | | | | |"
    trained = stage.get("architecture", architecture)
    length = f"{stage['iterations']:,} steps" if stage.get("iterations") else f"{stage['epochs']} epochs"
    cells = (
        stage["stage"] if trained == architecture else f"{stage['stage']}, `{trained}`",
        stage["name"],
        length,
        stage["batch"],
        stage["rate"],
        stage["schedule"],
        stage["weight_decay"],
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"
