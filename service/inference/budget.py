"""Compute budgets: find the execute threshold for a share of the dense MACs on the accuracy-compute curve."""

from typing import TYPE_CHECKING

import numpy as np

from service.errors import Code, ServiceError

WIDEST_STEP = 0.1
"""The widest step between two points of the curve, as a share of dense MACs, that is interpolated."""

NO_GATES = (
    "this model has no gates: every image runs all of its blocks, so neither execute_threshold nor compute_budget can "
    "be chosen"
)

if TYPE_CHECKING:
    from models.checkpoint import CalibrationPoint, Config


def choose_threshold(
    config: "Config", execute_threshold: float | None = None, compute_budget: float | None = None
) -> float:
    """Return the threshold of a request, given directly or by a budget. The default is the checkpoint's.

    Raises ServiceError invalid_parameter if both are given, the network has no gates, or the budget cannot be met or
    looked up.
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
    """Return whether the checkpoint's network has gates."""
    # Imports torch, which must not delay the server's start.
    from models.architectures import find_architecture

    return find_architecture(config.architecture).gates is not None


def why_no_budget(config: "Config") -> str:
    """Return the error for a budget if the checkpoint has no curve."""
    if not has_gates(config):
        return NO_GATES
    return (
        "this checkpoint has no accuracy-compute curve, which compute_budget needs; send execute_threshold, or measure "
        "the curve with `skipnet evaluate CHECKPOINT --calibrate --write`"
    )


def threshold_for(calibration: "list[CalibrationPoint]", budget: float) -> float:
    """Return the threshold of the highest accuracy whose mean cost is at most ``budget``, a share of dense MACs.

    This is the upper envelope of the accuracy-compute curve. A larger budget never has a lower expected accuracy. More
    computation is used only if it raises the accuracy. Of equal accuracies the lowest threshold is taken.

    The curve is interpolated linearly between neighbouring points. A step wider than WIDEST_STEP is not interpolated,
    because many nearly certain gates flip in it at once. Only its cheaper end is known to keep the budget.

    ``calibration`` has at least one point. Raises ServiceError invalid_parameter for a budget below every point.
    """
    points = sorted(calibration, key=lambda point: point.threshold)
    # A higher threshold cannot execute more blocks, so a rise of the measured cost is noise.
    shares = np.minimum.accumulate([point.mac_share for point in points])
    if budget < shares[-1]:
        raise ServiceError(
            Code.INVALID_PARAMETER,
            f"compute_budget {budget:g} cannot be met: with every gated block skipped, an image costs {shares[-1]:.4f}",
        )
    first = int(np.argmax(shares <= budget))  # the most expensive point within the budget
    best = max(range(first, len(points)), key=lambda i: points[i].accuracy)
    if best != first or first == 0 or shares[first - 1] - shares[first] > WIDEST_STEP:
        return points[best].threshold
    beyond = points[first - 1]
    if beyond.accuracy < points[first].accuracy:
        return points[first].threshold
    costs, thresholds = (shares[first], shares[first - 1]), (points[first].threshold, beyond.threshold)
    return float(np.interp(budget, costs, thresholds))


def expected_accuracy(calibration: "list[CalibrationPoint]", threshold: float) -> float:
    """Return the top-1 accuracy, 0..1, at a threshold of the curve, linear between two points."""
    points = sorted(calibration, key=lambda point: point.threshold)
    return float(np.interp(threshold, [point.threshold for point in points], [point.accuracy for point in points]))


def expected_mac_share(calibration: "list[CalibrationPoint]", threshold: float) -> float:
    """Return the mean MACs over the dense MACs at a threshold of the curve, linear between two points."""
    points = sorted(calibration, key=lambda point: point.threshold)
    return float(np.interp(threshold, [point.threshold for point in points], [point.mac_share for point in points]))
