"""The compute dial: from a share of the dense network's multiply-adds to an execute threshold."""

from typing import TYPE_CHECKING

import numpy as np

from service.errors import Code, ServiceError

WIDEST_STEP = 0.1
"""Of the curve, as a share of dense multiply-adds, that is taken to be linear."""

NO_GATES = (
    "this model has no gates: every image runs all of its blocks, and neither execute_threshold nor compute_budget can "
    "be chosen"
)

if TYPE_CHECKING:
    from models.checkpoint import CalibrationPoint, Config


def choose_threshold(
    config: "Config", execute_threshold: float | None = None, compute_budget: float | None = None
) -> float:
    """Return the threshold that a request asks for, itself or by a budget, or else the checkpoint's own.

    Raises ServiceError invalid_parameter where both are given, the network has no gates that could skip, or the budget
    can't be met or looked up.
    """
    if compute_budget is None:
        if execute_threshold and not has_gates(config):
            raise ServiceError(Code.INVALID_PARAMETER, NO_GATES)
        return config.execute_threshold if execute_threshold is None else execute_threshold
    if execute_threshold is not None:
        raise ServiceError(Code.INVALID_PARAMETER, "send execute_threshold or compute_budget, not both")
    if not config.calibration:
        raise ServiceError(Code.INVALID_PARAMETER, why_no_budget(config))
    return threshold_for(config.calibration, compute_budget)


def has_gates(config: "Config") -> bool:
    # Imported here since it loads torch, which must not delay the server's start.
    from models.architectures import find_architecture

    return find_architecture(config.architecture).gates is not None


def why_no_budget(config: "Config") -> str:
    if not has_gates(config):
        return NO_GATES
    return (
        "this checkpoint has no calibration curve to look a compute_budget up in; send execute_threshold, or let "
        "`skipnet evaluate CHECKPOINT --calibrate --write` measure the curve"
    )


def threshold_for(calibration: "list[CalibrationPoint]", budget: float) -> float:
    """Return the lowest threshold at which an image of the calibration spends at most ``budget`` on average.

    The calibration has a point at least; ``budget`` is a share of dense multiply-adds. Between two points of the curve
    the share is taken to be linear, but for a step so wide that gates which are nearly certain flip in it all at once:
    there the budget is kept for sure, at the step's upper end.
    """
    points = sorted(calibration, key=lambda point: point.threshold)
    # A higher threshold can't execute more: where the measured curve rises a little, that is noise.
    shares = np.minimum.accumulate([point.mac_share for point in points])
    if budget < shares[-1]:
        raise ServiceError(
            Code.INVALID_PARAMETER,
            f"compute_budget {budget:g} can't be met: with every gated block skipped an image spends {shares[-1]:.4f}",
        )
    first = int(np.argmax(shares <= budget))
    within = points[first].threshold
    if first == 0 or shares[first - 1] - shares[first] > WIDEST_STEP:
        return within
    ends = points[first - 1].threshold, within
    return float(np.interp(budget, (shares[first], shares[first - 1]), ends[::-1]))


def expected_accuracy(calibration: "list[CalibrationPoint]", threshold: float) -> float:
    """Return the top-1 accuracy, 0..1, of the calibration's images at a threshold; linear between two points."""
    points = sorted(calibration, key=lambda point: point.threshold)
    return float(np.interp(threshold, [point.threshold for point in points], [point.accuracy for point in points]))
