"""A cascade at many margins on a split, and the rivals that a user could serve instead, under the same rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.cascade.confidence import confidence, probabilities
from models.cascade.config import Cascade
from models.cascade.evaluate import collect_answers
from models.cascade.fit import StageAnswers
from models.checkpoint import Checkpoint
from models.engines.protocol import Engine
from models.evaluation.forced_routes import force_route
from models.evaluation.metrics import collect, run_engine

MARGINS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Load = Callable[[Checkpoint], Engine]
Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SweepPoint:
    """What a system answers at one margin. ``correct`` [N] tells which images it answers rightly."""

    system: str
    margin: float
    escalated: float
    macs: float
    correct: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def gain_over(self, other: "SweepPoint") -> tuple[float, float]:
        """Return by how much this is more accurate than another system, and the paired difference's standard error."""
        difference = self.correct.astype(np.float64) - other.correct
        return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def sweep(cascade: Cascade, load: Load, batches: Batches) -> list[SweepPoint]:
    """Return the points of a cascade of two stages and of its rival, and each of their stages alone.

    The rival is a cascade of two static
    networks: its first stage runs the same blocks for every image, as many as the gates execute on average, rounded up.
    ``batches`` are normalised images [N, 3, H, W] and labels [N].
    """
    first, last = cascade.stages
    threshold = cascade.config.stages[0].execute_threshold
    labels = np.concatenate([truth.numpy() for _, truth in batches])
    systems = {"gates": answer(first, load, batches, threshold)}
    if first.network.gate_kind is not None:
        systems["fixed route"] = fixed_route_answer(first, load, batches, threshold)
    final = answer(last, load, batches, cascade.config.stages[1].execute_threshold)
    points = [alone(f"{name} alone", stage, labels) for name, stage in systems.items()]
    points.append(alone("last stage alone", final, labels))
    for name, stage in systems.items():
        points += [escalate(cascade, f"{name} -> last stage", stage, final, labels, margin) for margin in MARGINS]
    return points


def answer(checkpoint: Checkpoint, load: Load, batches: Batches, threshold: float) -> StageAnswers:
    """Return what a stage answers at one execute threshold."""
    engine = load(checkpoint)
    try:
        return collect_answers(checkpoint, engine, batches, [threshold])[0]
    finally:
        engine.close()


def fixed_route_answer(checkpoint: Checkpoint, load: Load, batches: Batches, threshold: float) -> StageAnswers:
    """Return what a stage answers along one route for every image, charged without gates."""
    engine = load(checkpoint)
    try:
        executed = collect(run_engine(engine, threshold), batches)[2]
    finally:
        engine.close()
    route = np.zeros(executed.shape[1], np.bool_)
    route[np.argsort(-executed.mean(0), kind="stable")[: int(np.ceil(executed.sum(1).mean()))]] = True
    forced = answer(replace(checkpoint, network=force_route(checkpoint.network, route)), load, batches, 0.5)
    return replace(forced, macs=forced.macs - sum(checkpoint.macs.gates))


def alone(system: str, stage: StageAnswers, labels: NDArray[np.int64]) -> SweepPoint:
    """Return a stage that answers every image."""
    return SweepPoint(system, 0.0, 0.0, float(stage.macs.mean()), stage.logits.argmax(1) == labels)


def escalate(
    cascade: Cascade, system: str, first: StageAnswers, last: StageAnswers, labels: NDArray[np.int64], margin: float
) -> SweepPoint:
    """Return a cascade of two stages at a margin."""
    temperatures = [stage.temperature for stage in cascade.config.stages]
    shares = probabilities(first.logits, temperatures[0])
    goes_on = confidence(shares, cascade.config.measure) < np.float32(margin)
    later = probabilities(last.logits[goes_on], temperatures[1])
    shares[goes_on] = later if cascade.config.combination == "last" else (shares[goes_on] + later) / 2
    macs = first.macs + np.where(goes_on, last.macs, 0)
    return SweepPoint(system, margin, float(goes_on.mean()), float(macs.mean()), shares.argmax(1) == labels)


def describe_sweep(points: Sequence[SweepPoint]) -> str:
    """Return the points as a Markdown table; gains are over the last stage alone, in percentage points."""
    reference = next(point for point in points if point.system == "last stage alone")
    lines = [
        "| system | margin | goes on | top-1 | MACs | over the last stage (standard error) |",
        "|---|---|---|---|---|---|",
    ]
    for point in points:
        gain, error = point.gain_over(reference)
        lines.append(
            f"| {point.system} | {point.margin:.3f} | {point.escalated:.1%} | {point.accuracy:.2%} | "
            f"{point.macs / 1e6:.1f} M | {100 * gain:+.2f} ({100 * error:.2f}) |"
        )
    return "\n".join(lines)
