"""Build a cascade: temperatures, margins and the accuracy-compute curve, from validation images only."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.cascade.confidence import Measure, confidence, failure_auroc, probabilities
from models.cascade.config import CascadeConfig, CascadePoint, Combination, Stage
from models.checkpoint import Checkpoint, code_version
from models.errors import UserError
from models.evaluation.temperature import find_temperature

SHARES = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
"""Shares of a stage's validation images to escalate. A margin is tried for each of them."""


@dataclass(frozen=True)
class StageOutputs:
    """The outputs of one stage for all N validation images at one execute threshold: logits [N, classes], MACs [N]."""

    execute_threshold: float
    logits: NDArray[np.float32]
    macs: NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """One way to run a cascade on the validation images: outputs of each stage, and margins between the stages."""

    outputs: tuple[StageOutputs, ...]
    temperatures: tuple[float, ...]
    margins: tuple[float, ...]


def fit_cascade(
    checkpoints: Sequence[Checkpoint],
    outputs: Sequence[Sequence[StageOutputs]],
    labels: NDArray[np.int64],
    *,
    measure: Measure = "margin",
    combination: Combination = "mean",
    escalate: float = 0.08,
    budget: float | None = None,
) -> CascadeConfig:
    """Return the cascade of ``checkpoints`` with its accuracy-compute curve.

    ``outputs`` holds, for each stage, its outputs at its own execute threshold, then at others for the curve.
    ``labels`` [N] are the validation images' classes. At the operating point each stage escalates the share
    ``escalate`` of the images that reach it. ``budget`` is the mean MACs over the last stage's dense MACs. With it, the
    share is the largest of `SHARES` that keeps the budget. Labels do not influence this choice, so few validation
    images suffice. Raises UserError if the stages do not fit together or the budget cannot be met.
    """
    require_alike(checkpoints)
    dense = checkpoints[-1].macs.dense
    temperatures = tuple(
        round(find_temperature(torch.from_numpy(stage[0].logits), torch.from_numpy(labels)), 4) for stage in outputs
    )

    def point(choice: tuple[StageOutputs, ...], share: float) -> CascadePoint:
        margins = margins_for(choice, temperatures, measure, share)
        return measure_point(Candidate(choice, temperatures, margins), labels, dense, measure, combination)

    own = tuple(stage[0] for stage in outputs)
    if budget is not None:
        within = [share for share in SHARES if point(own, share).mac_share <= budget]
        if not within:
            least = point(own, 0).mac_share
            raise UserError(f"the budget {budget:g} cannot be met: the first stage alone takes {least:.4f}")
        escalate = within[-1]
    chosen = point(own, escalate)
    points = [point(choice, share) for choice in itertools.product(*outputs) for share in SHARES]
    return CascadeConfig(
        stages=tuple(
            Stage(
                model=checkpoint.name,
                version=checkpoint.version,
                execute_threshold=threshold,
                temperature=temperature,
                margin=margin,
            )
            for checkpoint, threshold, temperature, margin in zip(
                checkpoints, chosen.thresholds, temperatures, (*chosen.margins, None), strict=True
            )
        ),
        measure=measure,
        combination=combination,
        escalate=escalate,
        labels=checkpoints[0].config.labels,
        input=checkpoints[0].config.input,
        curve=upper_envelope([*points, chosen]),
        code=code_version(),
    )


def require_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise UserError if there are fewer than two stages, or their labels or inputs differ."""
    if len(checkpoints) < 2:
        raise UserError("a cascade needs at least two stages: name another checkpoint")
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for name in ("labels", "input"):
            if getattr(first.config, name) != getattr(other.config, name):
                raise UserError(f"{first.folder} and {other.folder} cannot form a cascade: their {name} differ")


def margins_for(
    choice: Sequence[StageOutputs], temperatures: Sequence[float], measure: Measure, share: float
) -> tuple[float, ...]:
    """Return the margins [S-1] at which each stage escalates ``share`` of the images that reach it."""
    alive = np.arange(len(choice[0].logits))
    margins = []
    for stage, temperature in zip(choice[:-1], temperatures, strict=False):
        sure = confidence(probabilities(stage.logits[alive], temperature), measure)
        margins.append(float(np.quantile(sure, share)) if share else 0.0)
        alive = alive[sure < np.float32(margins[-1])]
        if not len(alive):
            alive = np.arange(1)
    return tuple(margins)


def measure_point(
    candidate: Candidate, labels: NDArray[np.int64], dense: int, measure: Measure, combination: Combination
) -> CascadePoint:
    """Return a candidate's accuracy, MACs and escalation rates on the validation images."""
    alive = np.arange(len(labels))
    total = np.zeros(candidate.outputs[0].logits.shape, np.float32)
    macs, escalated = 0.0, []
    for number, (stage, temperature) in enumerate(zip(candidate.outputs, candidate.temperatures, strict=True)):
        if number:
            escalated.append(len(alive) / len(labels))
        shares = probabilities(stage.logits[alive], temperature)
        total[alive] = shares if combination == "last" else total[alive] * number / (number + 1) + shares / (number + 1)
        macs += float(stage.macs[alive].sum())
        if number < len(candidate.margins):
            alive = alive[confidence(shares, measure) < np.float32(candidate.margins[number])]
    return CascadePoint(
        thresholds=tuple(stage.execute_threshold for stage in candidate.outputs),
        margins=candidate.margins,
        accuracy=float((total.argmax(1) == labels).mean()),
        mac_share=macs / len(labels) / dense,
        escalated=tuple(escalated),
    )


def upper_envelope(points: Sequence[CascadePoint]) -> list[CascadePoint]:
    """Return the points of the Pareto frontier by rising MACs. Each is more accurate than all cheaper points."""
    envelope: list[CascadePoint] = []
    for point in sorted(points, key=lambda point: (point.mac_share, -point.accuracy)):
        if not envelope or point.accuracy > envelope[-1].accuracy:
            envelope.append(point)
    return envelope


def compare_measures(
    logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float
) -> dict[Measure, float]:
    """Return how well each confidence measure predicts a stage's errors, as `failure_auroc`."""
    shares = probabilities(logits, temperature)
    correct = shares.argmax(1) == labels
    measures: tuple[Measure, ...] = ("margin", "maximum", "entropy")
    return {measure: failure_auroc(confidence(shares, measure), correct) for measure in measures}
