"""Measuring a network: accuracy, the paper's computation percentage, true MACs, execution rates."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from models.checkpoint import CalibrationPoint, Checkpoint, Evaluation
from models.data.batches import PreparedImages
from models.data.source import Source
from models.engines.engine import Engine
from models.network import SkipNet
from models.preprocessing import InputSpec

BATCH = 250
CALIBRATION_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
REFINEMENTS, WIDEST_STEP, CLOSEST, EDGE = 16, 0.04, 0.25, 1e-6
"""Of the curve: thresholds added at most, the widest step in shares of dense MACs that is left alone, and in logits
the closest that thresholds come to each other and to 0 and 1."""

BISECTIONS = 5
"""Of the step in which the curve comes down to the computation percentage that a threshold is looked for."""


@dataclass(frozen=True)
class Metrics:
    """Accuracy and execution rate per gate in 0..1; the computation percentage is the paper's, in 0..100."""

    images: int
    accuracy: float
    accuracy_per_class: list[float]
    computation_percentage: float
    execution_rate: list[float]
    executed: NDArray[np.bool_]

    @classmethod
    def of(cls, logits: NDArray[np.float32], labels: NDArray[np.int64], executed: NDArray[np.bool_]) -> "Metrics":
        """Return the metrics of class logits [N, classes] and decisions [N, B-1] against labels [N]."""
        correct = logits.argmax(1) == labels
        classes = logits.shape[1]
        return cls(
            images=len(labels),
            accuracy=float(correct.mean()),
            accuracy_per_class=[
                float(correct[labels == label].mean()) if (labels == label).any() else 0.0 for label in range(classes)
            ],
            computation_percentage=float(100 * (1 + executed.sum(1)).mean() / (1 + executed.shape[1])),
            execution_rate=[float(rate) for rate in executed.mean(0)],
            executed=executed,
        )


def evaluate(
    run: Callable[[Tensor], tuple[NDArray[np.float32], NDArray[np.bool_]]],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> Metrics:
    """Return the metrics of ``run``, which answers normalised images with class logits and decisions."""
    logits, labels, executed = [], [], []
    for images, truth in batches:
        answer, decisions = run(images)
        logits.append(answer)
        labels.append(truth.cpu().numpy())
        executed.append(decisions)
    return Metrics.of(np.concatenate(logits), np.concatenate(labels), np.concatenate(executed))


def evaluate_network(network: SkipNet, batches: Iterable[tuple[Tensor, Tensor]]) -> Metrics:
    """Return the metrics of a network in its masked form, in evaluation mode; its mode is restored."""

    def run(images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        with torch.inference_mode():
            logits, routing = network(images)
        return logits.float().cpu().numpy(), (routing.decisions > 0).cpu().numpy()

    with network.evaluating():
        return evaluate(run, batches)


def evaluate_engine(engine: Engine, batches: Iterable[tuple[Tensor, Tensor]], threshold: float) -> Metrics:
    """Return the metrics of an engine at one execute threshold."""

    def run(images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        routed = engine.run(images.numpy(), np.full(len(images), threshold, np.float32))
        return routed.logits, routed.executed

    return evaluate(run, batches)


def measure(checkpoint: Checkpoint, engine: Engine, source: Source, split: str, threshold: float) -> Evaluation:
    """Return what a checkpoint does on a split, image by image as the service prepares them."""
    metrics = evaluate_engine(engine, prepared_batches(source, checkpoint.config.input), threshold)
    return Evaluation(
        dataset=source.row.name,
        split=split,
        images=metrics.images,
        engine=engine.name,
        execute_threshold=threshold,
        accuracy=metrics.accuracy,
        computation_percentage=metrics.computation_percentage,
        macs=float(checkpoint.macs.executed(metrics.executed).mean()),
        dense_macs=checkpoint.macs.dense,
        decisions_skipped=1 - float(metrics.executed.mean()) if metrics.executed.size else 0.0,
        execution_rate=metrics.execution_rate,
        accuracy_per_class=dict(zip(checkpoint.config.labels, metrics.accuracy_per_class, strict=True)),
    )


def calibrate(
    checkpoint: Checkpoint, engine: Engine, source: Source, at_most: float | None = None
) -> list[CalibrationPoint]:
    """Return the curve of the compute dial: what each execute threshold gives on a split's images, ascending.

    Where a step of the threshold saves much at once, thresholds between are measured too, until no step is wide or
    nothing lies between: gates that are nearly certain decide close to 0 and to 1. So are some where the curve first
    comes down to ``at_most``, a computation percentage, if that is what a threshold is looked for.
    """
    batches = list(prepared_batches(source, checkpoint.config.input))

    def point(threshold: float) -> CalibrationPoint:
        metrics = evaluate_engine(engine, batches, threshold)
        return CalibrationPoint(
            threshold=threshold,
            accuracy=metrics.accuracy,
            computation_percentage=metrics.computation_percentage,
            mac_share=float(checkpoint.macs.executed(metrics.executed).mean() / checkpoint.macs.dense),
        )

    points = [point(threshold) for threshold in CALIBRATION_THRESHOLDS]
    for _ in range(REFINEMENTS):
        step = widest_step(points)
        if step is None:
            break
        points.insert(step + 1, point(halfway(points[step].threshold, points[step + 1].threshold)))
    for _ in range(BISECTIONS):
        step = None if at_most is None else crossing_step(points, at_most)
        if step is None:
            break
        points.insert(step + 1, point(halfway(points[step].threshold, points[step + 1].threshold)))
    return points


def crossing_step(points: list[CalibrationPoint], at_most: float) -> int | None:
    """Return the first step of the curve that comes down to a computation percentage, if any does."""
    within = next((number for number, point in enumerate(points) if point.computation_percentage <= at_most), 0)
    return within - 1 if within else None


def widest_step(points: list[CalibrationPoint]) -> int | None:
    """Return which step of the curve is the widest in MACs, of those wide enough to be split and that can be."""
    steps = [
        (abs(before.mac_share - after.mac_share), number)
        for number, (before, after) in enumerate(pairwise(points))
        if log_odds(after.threshold) - log_odds(before.threshold) > CLOSEST
    ]
    width, number = max(steps, default=(0.0, 0))
    return number if width > WIDEST_STEP else None


def halfway(low: float, high: float) -> float:
    """Return the threshold between two others at which the gates' logits, not their probabilities, are halved."""
    threshold = 1 / (1 + math.exp(-(log_odds(low) + log_odds(high)) / 2))
    return float(f"{threshold:.7f}")


def log_odds(threshold: float) -> float:
    """Return the logit of a threshold; of 0 and 1, that of the last ones that float32 tells from them."""
    inside = min(max(threshold, EDGE), 1 - EDGE)
    return math.log(inside / (1 - inside))


def prepared_batches(source: Source, spec: InputSpec) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield network inputs, prepared as the service prepares them, and labels, in the source's order."""
    return DataLoader(PreparedImages(source, spec), BATCH)
