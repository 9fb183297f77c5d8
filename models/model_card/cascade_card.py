"""The card of a cascade: its README.md, with the figures of its config.json."""

from pathlib import Path

from models.cascade.config import Cascade, CascadeConfig, read_cascade
from models.model_card.card import BEGIN, CARD, END, split_card
from models.persistence.atomic_file import whole_file

SHOWN_LOSS = 0.05
"""The card shows points of the curve that lose at most this accuracy to the best one."""
TEMPLATE = """\
# {name}, version {version}

A cascade: images of which a cheap network is unsure are escalated to a more accurate one.

{figures}

## Limits

- It has the classes and the input of its stages, and their weaknesses.
- Inputs unlike the validation images escalate more often and cost more; `skipnet_cascade_images_total` shows it.
"""


def write_cascade_card(folder: Path) -> Path:
    """Write the figures into a cascade's card, or into a new card, and return its path.

    Raises CheckpointError if the cascade cannot be read or an existing card lacks the marks.
    """
    cascade, card = read_cascade(folder), folder / CARD
    figures = draw_figures(cascade)
    if card.is_file():
        before, _, after = split_card(card)
        text = before + figures + after
    else:
        text = TEMPLATE.format(name=cascade.name, version=cascade.version, figures=figures)
    with whole_file(card) as file:
        file.write(text.encode())
    return card


def draw_figures(cascade: Cascade) -> str:
    """Return the figures in Markdown, marks included."""
    config = cascade.config
    body = "\n\n".join([draw_stages(config), draw_evaluation(cascade), draw_curve(config), draw_command(cascade)])
    return f"{BEGIN}\n\n{body}\n\n{END}"


def draw_stages(config: CascadeConfig) -> str:
    """Return the table of stages."""
    lines = [
        f"Confidence is the {config.measure} of the class probabilities; "
        + (
            "the output is the mean of the stages' probabilities."
            if config.combination == "mean"
            else "the output is that of the last stage that ran."
        ),
        "",
        "| stage | execute threshold | temperature | escalates below |",
        "|---|---|---|---|",
    ]
    for stage in config.stages:
        margin = "" if stage.margin is None else f"{stage.margin:.4f}"
        threshold, temperature = f"{stage.execute_threshold:g}", f"{stage.temperature:g}"
        lines.append(f"| `{stage.model}`, version {stage.version} | {threshold} | {temperature} | {margin} |")
    return "\n".join(lines)


def draw_evaluation(cascade: Cascade) -> str:
    """Return what `skipnet evaluate` measured."""
    found = cascade.config.evaluation
    if found is None:
        return "Not evaluated yet: `skipnet evaluate CASCADE --write`."
    shares = ", ".join(f"{share:.2%}" for share in found.escalated)
    saved = 1 - found.macs / found.dense_macs
    return (
        f"On the {found.images:,} {found.split} images of {found.dataset} (engine {found.engine}): **top-1 "
        f"{found.accuracy:.2%} for {found.macs / 1e6:.1f} M MACs an image**, all stages counted. The last stage alone, "
        f"dense, takes {found.dense_macs / 1e6:.1f} M; {saved:.1%} of that is saved. {shares} of the images are "
        "escalated."
    )


def draw_curve(config: CascadeConfig) -> str:
    """Return the accuracy-compute curve as a table."""
    best = max((point.accuracy for point in config.curve), default=0.0)
    shown = [point for point in config.curve if point.accuracy >= best - SHOWN_LOSS]
    lines = [
        "The accuracy-compute curve, on validation images (what `compute_budget` chooses from). `config.json` has "
        f"{len(config.curve) - len(shown)} more points that are cheaper and lose more than {SHOWN_LOSS:.0%}.",
        "",
        "| MACs over dense | top-1 | escalated |",
        "|---|---|---|",
    ]
    for point in shown:
        shares = ", ".join(f"{share:.1%}" for share in point.escalated)
        lines.append(f"| {point.mac_share:.3f} | {point.accuracy:.2%} | {shares} |")
    return "\n".join(lines)


def draw_command(cascade: Cascade) -> str:
    """Return the command that builds the cascade again."""
    stages = " ".join(f"REPOSITORY/{stage.model}/{stage.version}" for stage in cascade.config.stages)
    thresholds = ",".join(f"{stage.execute_threshold:g}" for stage in cascade.config.stages)
    escalate = "" if cascade.config.escalate is None else f" --escalate {cascade.config.escalate:g}"
    output = f"--data FOLDER --output REPOSITORY/{cascade.name}"
    return f"```\nskipnet cascade {stages} --execute-thresholds {thresholds}{escalate} {output}\n```"
