"""The study of one checkpoint on one data set: everything that `skipnet analyze` measures, as data."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from models.analysis import images
from models.analysis.adversarial import Attack, measure_attacks
from models.analysis.images import Pixels, Sample
from models.analysis.routes import Answers, Runner, path_shares, quantiles, rank_correlation
from models.analysis.stability import Flips, Reliability, Worth, measure_flips, measure_worth
from models.checkpoint import Checkpoint

ANALYSIS = "analysis.json"
LOOKS: dict[str, Callable[[Pixels], NDArray[np.float32]]] = {
    "brightness": images.brightness,
    "contrast": images.contrast,
    "sharpness": images.sharpness,
}
ALTERATIONS: dict[str, tuple[Callable[[Pixels, float], Pixels], float, tuple[float, ...]]] = {
    "scale": (images.resize, 1.0, (0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0)),
    "brightness": (images.brighten, 1.0, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)),
    "contrast": (images.stretch, 1.0, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)),
    "blur": (images.blur, 0.0, (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)),
}
"""How an image is altered, the strength that leaves it as it is, and the strengths that are measured."""
BOUNDS = (2, 8)
FIFTHS = 5


class AnalysisError(ValueError):
    """There is nothing to analyse, or a stored analysis can't be read; the message says what to do."""


@dataclass(frozen=True)
class ClassRoutes:
    """One class: its images, top-1 accuracy, mean blocks executed, and their 5, 25, 50, 75 and 95 % quantiles."""

    label: str
    images: int
    accuracy: float
    blocks: float
    quantiles: tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Look:
    """How blocks executed go with what images look like: rank correlation, and means by fifths of the look."""

    name: str
    correlation: float
    centres: list[float]
    blocks: list[float]


@dataclass(frozen=True)
class Altered:
    """The same images, altered in strength: mean blocks executed, accuracy, and the change of blocks as quantiles."""

    name: str
    neutral: float
    strengths: list[float]
    blocks: list[float]
    accuracy: list[float]
    change: list[tuple[float, float, float, float, float]]


@dataclass(frozen=True)
class Analysis:
    """What a checkpoint does on the images of a data set. Shares and accuracies are in 0..1; blocks count the first."""

    model: str
    dataset: str
    split: str
    images: int
    altered_images: int
    engine: str
    execute_threshold: float
    blocks: int
    groups: list[int]
    accuracy: float
    mean_blocks: float
    mac_share: float
    histogram: list[int]
    accuracy_by_blocks: list[float | None]
    execution_rate: list[float]
    paths: int
    path_shares: list[float]
    classes: list[ClassRoutes]
    looks: list[Look]
    altered: list[Altered]
    flips: list[Flips]
    reliability: list[Reliability]
    worth: list[Worth]
    attacks: list[Attack]

    def as_dict(self) -> dict[str, Any]:
        """Return the analysis for JSON, figures rounded to what they are worth."""
        rounded = rounding(asdict(self))
        assert isinstance(rounded, dict)
        return rounded


def rounding(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounding(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounding(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def read_analysis(folder: Path) -> Analysis | None:
    """Return what was written beside a checkpoint; None where nothing was. Raises AnalysisError where it is damaged."""
    path = folder / ANALYSIS
    if not path.is_file():
        return None
    try:
        return TypeAdapter(Analysis).validate_json(path.read_bytes())
    except ValidationError as error:
        raise AnalysisError(f"{path} can't be read: run `skipnet analyze … --write` again ({error})") from error


def study(
    checkpoint: Checkpoint,
    runner: Runner,
    sample: Sample,
    answers: Answers,
    *,
    dataset: str,
    split: str,
    altered: int,
    attacked: int,
    report: Callable[[str], None],
) -> Analysis:
    """Return the analysis of ``answers``, an engine's for ``sample``.

    ``altered`` of the images are measured in altered copies too, ``attacked`` of them under attack; ``report`` is told
    what begins. Raises AnalysisError for a network without gates.
    """
    network, macs = checkpoint.network, checkpoint.macs
    if network.gate_kind is None:
        raise AnalysisError(f"{checkpoint.folder} has no gates: every image takes the one path through every block")
    count = len(network.blocks)
    part = sample.first(altered)
    few = sample.first(attacked)
    report(f"{len(part.labels)} images altered in scale, brightness, contrast and blur")
    changed = [alter(name, runner, part) for name in ALTERATIONS]
    report("decisions under JPEG, shifts and half precision")
    flips, reliability = measure_flips(network, runner, part.pixels)
    report(
        f"{len(few.labels)} images: what each block is worth, and attacks within {' and '.join(map(str, BOUNDS))}/255"
    )
    return Analysis(
        model=f"{checkpoint.name}, version {checkpoint.version}",
        dataset=dataset,
        split=split,
        images=len(sample.labels),
        altered_images=len(part.labels),
        engine=runner.engine.name,
        execute_threshold=runner.threshold,
        blocks=count,
        groups=group_numbers(macs.projections),
        accuracy=float((answers.predicted == sample.labels).mean()),
        mean_blocks=float(answers.blocks.mean()),
        mac_share=float(macs.executed(answers.executed).mean() / macs.dense),
        histogram=np.bincount(answers.blocks, minlength=count + 1).tolist(),
        accuracy_by_blocks=accuracy_by_blocks(answers, sample, count),
        execution_rate=[1.0, *answers.executed.mean(0).tolist()],
        paths=len(path_shares(answers.executed)),
        path_shares=path_shares(answers.executed)[:20],
        classes=class_routes(answers, sample, checkpoint.config.labels),
        looks=[correlate(name, answers, sample) for name in LOOKS],
        altered=changed,
        flips=flips,
        reliability=reliability,
        worth=measure_worth(network, runner, few.pixels, few.labels) if len(few.labels) else [],
        attacks=measure_attacks(network, runner, macs, few, BOUNDS) if len(few.labels) else [],
    )


def group_numbers(projections: tuple[int, ...]) -> list[int]:
    """Return each block's group, 0, 0, ..., 1, ...: from the second on, a block with a projection opens a group."""
    starts = [index > 0 and cost > 0 for index, cost in enumerate(projections)]
    numbers: list[int] = np.cumsum(starts).tolist()
    return numbers


def accuracy_by_blocks(answers: Answers, sample: Sample, count: int) -> list[float | None]:
    right = answers.predicted == sample.labels
    masks = [answers.blocks == blocks for blocks in range(count + 1)]
    return [float(right[mask].mean()) if mask.any() else None for mask in masks]


def class_routes(answers: Answers, sample: Sample, labels: list[str]) -> list[ClassRoutes]:
    """Return a row for each class that has images, those that execute least first."""
    rows = []
    for number, label in enumerate(labels):
        mask = sample.labels == number
        if mask.any():
            blocks = answers.blocks[mask]
            right = float((answers.predicted[mask] == number).mean())
            rows.append(ClassRoutes(label, int(mask.sum()), right, float(blocks.mean()), quantiles(blocks)))
    return sorted(rows, key=lambda row: row.blocks)


def correlate(name: str, answers: Answers, sample: Sample) -> Look:
    values = LOOKS[name](sample.pixels)
    fifths = np.array_split(np.argsort(values, kind="stable"), min(FIFTHS, len(values)))
    return Look(
        name,
        rank_correlation(values, answers.blocks),
        [float(values[members].mean()) for members in fifths],
        [float(answers.blocks[members].mean()) for members in fifths],
    )


def alter(name: str, runner: Runner, sample: Sample) -> Altered:
    change, neutral, strengths = ALTERATIONS[name]
    made = [runner.answer(copy) for copy in map(partial(change, sample.pixels), strengths)]
    plain = made[strengths.index(neutral)]
    return Altered(
        name=name,
        neutral=neutral,
        strengths=list(strengths),
        blocks=[float(answers.blocks.mean()) for answers in made],
        accuracy=[float((answers.predicted == sample.labels).mean()) for answers in made],
        change=[quantiles(answers.blocks - plain.blocks) for answers in made],
    )
