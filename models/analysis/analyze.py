"""Measure everything that `skipnet analyze` reports about one checkpoint on one data set."""

from collections.abc import Callable

import numpy as np

from models.analysis.adversarial import measure_attacks
from models.analysis.alterations import ALTERATIONS
from models.analysis.appearance import MEASURES
from models.analysis.routes import Outputs, Runner, path_shares, quantiles, rank_correlation
from models.analysis.sample import Sample
from models.analysis.schema import AlterationEffect, Analysis, AppearanceEffect, ClassRoutes
from models.analysis.stability import measure_execution_benefit, measure_flips
from models.checkpoint import Checkpoint
from models.errors import UserError
from models.evaluation.fixed_routes import Load, compare_with_routed

BOUNDS = (2, 8)
"""Largest change of a pixel value (of 255) in an attack."""
FIFTHS = 5
MOST_PATHS = 20


def analyze(
    checkpoint: Checkpoint,
    runner: Runner,
    load: Load,
    sample: Sample,
    outputs: Outputs,
    *,
    dataset: str,
    split: str,
    altered: int,
    attacked: int,
    progress: Callable[[str], None],
) -> Analysis:
    """Return the analysis of the ``outputs`` of an engine for ``sample``.

    The first ``altered`` images are also run in altered copies, the first ``attacked`` images are attacked. ``load``
    makes an engine of the checkpoint with other gates. ``progress`` is called with the name of each step. Raises
    UserError for a network without gates.
    """
    network, macs = checkpoint.network, checkpoint.macs
    require_gates(checkpoint)
    count = len(network.blocks)
    correct = outputs.predicted == sample.labels
    executed_macs = macs.executed(outputs.executed)
    progress("the same weights along fixed routes")
    fixed_routes = compare_with_routed(checkpoint, load, sample.batches(runner.spec), correct, outputs.executed)
    part, few = sample.first(altered), sample.first(attacked)
    progress(f"{len(part.labels)} images altered in scale, brightness, contrast and blur")
    effects = [measure_alteration(name, runner, part) for name in ALTERATIONS]
    progress("flips under JPEG compression, shifts and bfloat16")
    flips, reliability = measure_flips(network, runner, part.pixels)
    progress(f"{len(few.labels)} images: benefit of each block, attacks within {' and '.join(map(str, BOUNDS))}/255")
    return Analysis(
        model=f"{checkpoint.name}, version {checkpoint.version}",
        dataset=dataset,
        split=split,
        images=len(sample.labels),
        altered_images=len(part.labels),
        engine=runner.engine.name,
        execute_threshold=runner.threshold,
        blocks=count,
        groups=block_groups(macs.projections),
        accuracy=float(correct.mean()),
        mean_blocks=float(outputs.blocks.mean()),
        mac_share=float(executed_macs.mean() / macs.dense),
        histogram=np.bincount(outputs.blocks, minlength=count + 1).tolist(),
        accuracy_by_blocks=accuracy_by_blocks(outputs, sample, count),
        execution_rate=[1.0, *outputs.executed.mean(0).tolist()],
        paths=len(path_shares(outputs.executed)),
        path_shares=path_shares(outputs.executed)[:MOST_PATHS],
        classes=class_routes(outputs, sample, checkpoint.config.labels),
        appearance=[measure_appearance(name, outputs, sample) for name in MEASURES],
        altered=effects,
        flips=flips,
        reliability=reliability,
        execution_benefit=measure_execution_benefit(network, runner, few.pixels, few.labels) if len(few.labels) else [],
        attacks=measure_attacks(network, runner, macs, few, BOUNDS) if len(few.labels) else [],
        macs=float(executed_macs.mean()),
        fixed_routes=fixed_routes,
    )


def require_gates(checkpoint: Checkpoint) -> None:
    """Raise UserError for a network without gates."""
    if checkpoint.network.gate_kind is None:
        raise UserError(
            f"{checkpoint.folder} has no gates, so every image takes the same path: choose a network with gates"
        )


def block_groups(projections: tuple[int, ...]) -> list[int]:
    """Return the group of each block, counted from 0. Every projection except the first block's begins a group."""
    starts = [index > 0 and cost > 0 for index, cost in enumerate(projections)]
    numbers: list[int] = np.cumsum(starts).tolist()
    return numbers


def accuracy_by_blocks(outputs: Outputs, sample: Sample, count: int) -> list[float | None]:
    """Return the accuracy of the images that execute 0, 1, ... ``count`` blocks, or None if there are none."""
    right = outputs.predicted == sample.labels
    masks = [outputs.blocks == blocks for blocks in range(count + 1)]
    return [float(right[mask].mean()) if mask.any() else None for mask in masks]


def class_routes(outputs: Outputs, sample: Sample, labels: list[str]) -> list[ClassRoutes]:
    """Return the routes of each class that has images, in ascending order of executed blocks."""
    found = []
    for number, label in enumerate(labels):
        mask = sample.labels == number
        if mask.any():
            blocks = outputs.blocks[mask]
            accuracy = float((outputs.predicted[mask] == number).mean())
            found.append(ClassRoutes(label, int(mask.sum()), accuracy, float(blocks.mean()), quantiles(blocks)))
    return sorted(found, key=lambda routes: routes.blocks)


def measure_appearance(name: str, outputs: Outputs, sample: Sample) -> AppearanceEffect:
    """Return how the executed blocks depend on a measure of appearance."""
    values = MEASURES[name](sample.pixels)
    fifths = np.array_split(np.argsort(values, kind="stable"), min(FIFTHS, len(values)))
    return AppearanceEffect(
        name,
        rank_correlation(values, outputs.blocks),
        [float(values[members].mean()) for members in fifths],
        [float(outputs.blocks[members].mean()) for members in fifths],
    )


def measure_alteration(name: str, runner: Runner, sample: Sample) -> AlterationEffect:
    """Return the executed blocks and the accuracy at each strength of an alteration."""
    alteration = ALTERATIONS[name]
    outputs = [runner.run(alteration.change(sample.pixels, strength)) for strength in alteration.strengths]
    unaltered = outputs[alteration.strengths.index(alteration.neutral)]
    return AlterationEffect(
        name=name,
        neutral=alteration.neutral,
        strengths=list(alteration.strengths),
        blocks=[float(each.blocks.mean()) for each in outputs],
        accuracy=[float((each.predicted == sample.labels).mean()) for each in outputs],
        change=[quantiles(each.blocks - unaltered.blocks) for each in outputs],
    )
