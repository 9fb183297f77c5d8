"""Measure the accuracy-compute curve: the accuracy and the computation at each execute threshold."""

import math
from itertools import pairwise

from models.checkpoint import CalibrationPoint, Checkpoint
from models.data.source import Source
from models.engines.protocol import Engine
from models.evaluation.metrics import evaluate_engine, prepared_batches

CALIBRATION_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
REFINEMENTS = 16
"""The largest number of added thresholds."""
WIDEST_STEP = 0.04
"""The widest step of the curve, as a share of the dense MACs, that is not divided."""
LEAST_DISTANCE, EDGE = 0.25, 1e-6
"""The least distance of two thresholds in logits, and the least distance of a threshold to 0 and 1."""
BISECTIONS = 5
"""The number of thresholds added near the crossing of the curve and ``at_most``."""


def calibrate(
    checkpoint: Checkpoint, engine: Engine, source: Source, at_most: float | None = None
) -> list[CalibrationPoint]:
    """Return the accuracy-compute curve on a split's images, in ascending order of the execute threshold.

    Thresholds are added within large steps of the curve, in which gates with probabilities near 0 and 1 change their
    decisions. With ``at_most``, a computation percentage, more are added near the first point of the curve below it.
    """
    batches = list(prepared_batches(source, checkpoint.config.input))

    def measure_point(threshold: float) -> CalibrationPoint:
        metrics = evaluate_engine(engine, batches, threshold)
        return CalibrationPoint(
            threshold=threshold,
            accuracy=metrics.accuracy,
            computation_percentage=metrics.computation_percentage,
            mac_share=float(checkpoint.macs.executed(metrics.executed).mean() / checkpoint.macs.dense),
        )

    points = [measure_point(threshold) for threshold in CALIBRATION_THRESHOLDS]
    for _ in range(REFINEMENTS):
        step = widest_step(points)
        if step is None:
            break
        points.insert(step + 1, measure_point(halfway(points[step].threshold, points[step + 1].threshold)))
    for _ in range(BISECTIONS):
        step = None if at_most is None else crossing_step(points, at_most)
        if step is None:
            break
        points.insert(step + 1, measure_point(halfway(points[step].threshold, points[step + 1].threshold)))
    return points


def crossing_step(points: list[CalibrationPoint], at_most: float) -> int | None:
    """Return the first step of the curve that ends at or below a computation percentage, if any."""
    within = next((number for number, point in enumerate(points) if point.computation_percentage <= at_most), 0)
    return within - 1 if within else None


def widest_step(points: list[CalibrationPoint]) -> int | None:
    """Return the step of the curve that is the widest in MACs, or None if no step must be divided or can be."""
    steps = [
        (abs(before.mac_share - after.mac_share), number)
        for number, (before, after) in enumerate(pairwise(points))
        if log_odds(after.threshold) - log_odds(before.threshold) > LEAST_DISTANCE
    ]
    width, number = max(steps, default=(0.0, 0))
    return number if width > WIDEST_STEP else None


def halfway(low: float, high: float) -> float:
    """Return the threshold whose logit is the mean of the logits of two others."""
    threshold = 1 / (1 + math.exp(-(log_odds(low) + log_odds(high)) / 2))
    return float(f"{threshold:.7f}")


def log_odds(threshold: float) -> float:
    """Return the logit of a threshold, clipped to EDGE and 1 - EDGE."""
    inside = min(max(threshold, EDGE), 1 - EDGE)
    return math.log(inside / (1 - inside))
