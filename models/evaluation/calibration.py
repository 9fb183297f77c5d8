"""The curve of the compute dial: what accuracy each execute threshold buys, and for how much computation."""

import math
from itertools import pairwise

from models.checkpoint import CalibrationPoint, Checkpoint
from models.data.source import Source
from models.engines.protocol import Engine
from models.evaluation.metrics import evaluate_engine, prepared_batches

CALIBRATION_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
REFINEMENTS, WIDEST_STEP, CLOSEST, EDGE = 16, 0.04, 0.25, 1e-6
"""Of the curve: thresholds added at most, the widest step in shares of dense MACs that is left alone, and in logits
the closest that thresholds come to each other and to 0 and 1."""

BISECTIONS = 5
"""Of the step in which the curve comes down to the computation percentage that a threshold is looked for."""


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
