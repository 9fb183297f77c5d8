"""Accuracy over MACs of a cascade at many margins, and of the systems that a user could serve instead."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.cascade.confidence import confidence, probabilities
from models.cascade.config import Cascade
from models.cascade.evaluate import collect_outputs
from models.cascade.fit import StageOutputs
from models.checkpoint import Checkpoint
from models.engines.protocol import Engine
from models.errors import UserError
from models.evaluation.fixed_routes import most_executed, paired_gain
from models.evaluation.forced_routes import force_route
from models.evaluation.metrics import collect, run_engine

MARGINS = tuple(round(0.05 * step, 2) for step in range(1, 20))
Load = Callable[[Checkpoint], Engine]
Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FrontierPoint:
    """One system at one margin. ``correct`` [N] is true for the images that it classifies correctly.

    ``first`` names the first stage and ``last`` the last one. ``last`` is None for a network that runs alone. ``macs``
    are the mean MACs of an image over all stages. ``escalated`` is the share of the images that reach the last stage.
    """

    first: str
    last: str | None
    margin: float
    escalated: float
    macs: float
    correct: NDArray[np.bool_]

    @property
    def system(self) -> str:
        """The name of the system. Points of one system differ only in their margin."""
        return f"{self.first} -> {self.last}" if self.last else self.first

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def gain_over(self, other: "FrontierPoint") -> tuple[float, float]:
        """Return the difference in accuracy from another system, and the standard error of the paired difference."""
        return paired_gain(self.correct, other.correct)


def measure_frontier(
    cascade: Cascade, rivals: Sequence[Checkpoint], load: Load, batches: Batches
) -> list[FrontierPoint]:
    """Return the points of a cascade of two stages, of its rivals, and of every network alone.

    A rival is another first stage under the same rule. For a first stage with gates, there is one more rival: the same
    weights along a fixed route, without gates. The route has as many blocks as the images execute on average, rounded
    up. They are the blocks that the images execute most often. ``batches`` are normalised images [N, 3, H, W] and
    labels [N]. Raises UserError if the cascade has more than two stages or a rival has other labels or another input.
    """
    if len(cascade.stages) != 2:
        raise UserError(f"{cascade.folder} has {len(cascade.stages)} stages: the comparison needs a cascade of two")
    first, last = cascade.stages
    for rival in rivals:
        if rival.config.labels != last.config.labels or rival.config.input != last.config.input:
            raise UserError(f"{rival.folder} has other labels or another input than {last.folder}")
    labels = np.concatenate([truth.numpy() for _, truth in batches])
    temperature, final_temperature = (stage.temperature for stage in cascade.config.stages)
    own_threshold, final_threshold = (stage.execute_threshold for stage in cascade.config.stages)
    final = run_stage(last, load, batches, final_threshold)
    stages = list(first_stage_systems(first, load, batches, own_threshold))
    outputs = [(name, found, temperature) for name, found in stages]
    for rival in rivals:
        found = first_stage_systems(rival, load, batches, rival.config.execute_threshold)
        outputs += [(name, output, 1.0) for name, output in found]
    points = [alone(name, output, labels) for name, output, _ in outputs]
    points.append(alone(last.name, final, labels))
    for name, output, scale in outputs:
        rule = Rule(cascade, name, last.name, (scale, final_temperature))
        points += [rule.escalate(output, final, labels, margin) for margin in MARGINS]
    return points


def first_stage_systems(
    checkpoint: Checkpoint, load: Load, batches: Batches, threshold: float
) -> Iterator[tuple[str, StageOutputs]]:
    """Yield the name and the outputs of a first stage, and of its fixed route if it has gates."""
    yield checkpoint.name, run_stage(checkpoint, load, batches, threshold)
    if checkpoint.network.gate_kind is not None:
        yield f"{checkpoint.name}, fixed route", run_fixed_route(checkpoint, load, batches, threshold)


def run_stage(checkpoint: Checkpoint, load: Load, batches: Batches, threshold: float) -> StageOutputs:
    """Return the outputs of a stage at one execute threshold."""
    engine = load(checkpoint)
    try:
        return collect_outputs(checkpoint, engine, batches, [threshold])[0]
    finally:
        engine.close()


def run_fixed_route(checkpoint: Checkpoint, load: Load, batches: Batches, threshold: float) -> StageOutputs:
    """Return the outputs of a stage along one route for every image. The MACs of the gates are not counted."""
    engine = load(checkpoint)
    try:
        executed = collect(run_engine(engine, threshold), batches)[2]
    finally:
        engine.close()
    route = most_executed(executed, int(np.ceil(executed.sum(1).mean())))
    forced = run_stage(replace(checkpoint, network=force_route(checkpoint.network, route)), load, batches, 0.5)
    return replace(forced, macs=forced.macs - sum(checkpoint.macs.gates))


def alone(name: str, outputs: StageOutputs, labels: NDArray[np.int64]) -> FrontierPoint:
    """Return the point of one network that classifies every image."""
    return FrontierPoint(name, None, 0.0, 0.0, float(outputs.macs.mean()), outputs.logits.argmax(1) == labels)


@dataclass(frozen=True)
class Rule:
    """A cascade's rule for escalation with the first stage ``first``. ``temperatures`` are those of both stages."""

    cascade: Cascade
    first: str
    last: str
    temperatures: tuple[float, float]

    def escalate(
        self, first: StageOutputs, last: StageOutputs, labels: NDArray[np.int64], margin: float
    ) -> FrontierPoint:
        """Return the point of the cascade at one margin, from both stages' outputs for all images."""
        config = self.cascade.config
        shares = probabilities(first.logits, self.temperatures[0])
        goes_on = confidence(shares, config.measure) < np.float32(margin)
        later = probabilities(last.logits[goes_on], self.temperatures[1])
        shares[goes_on] = later if config.combination == "last" else (shares[goes_on] + later) / 2
        macs = first.macs + np.where(goes_on, last.macs, 0)
        return FrontierPoint(
            self.first, self.last, margin, float(goes_on.mean()), float(macs.mean()), shares.argmax(1) == labels
        )


def most_within(points: Sequence[FrontierPoint], budget: float) -> list[FrontierPoint]:
    """Return each system's point of the largest margin whose mean MACs are at most ``budget``.

    Labels do not influence the choice.
    """
    found: dict[str, FrontierPoint] = {}
    for point in points:
        if point.macs <= budget and (point.system not in found or point.macs > found[point.system].macs):
            found[point.system] = point
    return list(found.values())
