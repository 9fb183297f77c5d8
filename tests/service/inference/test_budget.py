import numpy as np
import pytest

from models import SHIPPED
from models.checkpoint import CalibrationPoint, Config, is_cascade, read_config
from models.model_repository import find_version
from service.errors import Code, ServiceError
from service.inference.budget import choose_threshold, expected_accuracy, threshold_for
from tests.service.parts import LABELS, NAME, SPEC


def curve(*points: tuple[float, float]) -> list[CalibrationPoint]:
    return [
        CalibrationPoint(threshold=threshold, accuracy=0.9, computation_percentage=50, mac_share=share)
        for threshold, share in points
    ]


CURVE = curve((0, 1.0), (0.25, 0.91), (0.5, 0.82), (0.75, 0.2), (1, 0.1))


@pytest.mark.parametrize(
    ("budget", "threshold"),
    [(1, 0), (1.0003, 0), (0.91, 0.25), (0.865, 0.375), (0.82, 0.5), (0.2, 0.75), (0.15, 0.875), (0.1, 1)],
)
def test_threshold_of_a_budget(budget: float, threshold: float) -> None:
    assert threshold_for(CURVE, budget) == pytest.approx(threshold)
    assert threshold_for(CURVE[::-1], budget) == pytest.approx(threshold)


@pytest.mark.parametrize("budget", [0.8199, 0.5, 0.2001])
def test_a_budget_is_kept_if_all_gates_flip_at_once(budget: float) -> None:
    # The curve has no point between 0.82 and 0.2, and the step may be at either end.
    assert threshold_for(CURVE, budget) == 0.75


def test_a_budget_below_the_minimum_is_refused_with_the_minimum() -> None:
    with pytest.raises(ServiceError, match=r"0\.1000"):
        threshold_for(CURVE, 0.09)


def test_of_equal_shares_the_lowest_threshold_is_taken() -> None:
    assert threshold_for(curve((0, 1), (0.2, 0.5), (0.4, 0.5), (0.6, 0.5), (1, 0.1)), 0.5) == pytest.approx(0.2)


def test_noise_in_the_curve_does_not_raise_the_cost() -> None:
    assert threshold_for(curve((0, 1), (0.3, 0.5), (0.5, 0.52), (1, 0.1)), 0.51) <= 0.3


def test_the_threshold_of_a_request() -> None:
    config = Config(architecture=NAME, labels=LABELS, input=SPEC, execute_threshold=0.4, calibration=CURVE, code="test")
    assert choose_threshold(config) == 0.4
    assert choose_threshold(config, execute_threshold=0.0) == 0.0
    assert choose_threshold(config, compute_budget=0.82) == pytest.approx(0.5)
    with pytest.raises(ServiceError) as caught:
        choose_threshold(config, 0.5, 0.5)
    assert caught.value.code == Code.INVALID_PARAMETER
    without = config.model_copy(update={"calibration": []})
    with pytest.raises(ServiceError, match="measure the curve with `skipnet evaluate CHECKPOINT --calibrate --write`"):
        choose_threshold(without, compute_budget=0.5)
    plain = without.model_copy(update={"architecture": "cifar10_resnet_38"})
    for parameters in ({"compute_budget": 0.5}, {"execute_threshold": 0.5}):
        with pytest.raises(ServiceError, match=r"no gates: .* neither execute_threshold nor compute_budget"):
            choose_threshold(plain, **parameters)
    assert choose_threshold(plain, execute_threshold=0.0) == 0.0


def test_accuracy_is_looked_up_between_two_points() -> None:
    points = [
        CalibrationPoint(threshold=threshold, accuracy=accuracy, computation_percentage=50, mac_share=0.5)
        for threshold, accuracy in ((0.8, 0.5), (0.0, 0.9), (0.4, 0.9))
    ]
    assert expected_accuracy(points, 0.4) == 0.9
    assert expected_accuracy(points, 0.6) == pytest.approx(0.7)


def shipped_curves() -> list[tuple[str, list[CalibrationPoint]]]:
    folders = [find_version(SHIPPED, folder.name, None) for folder in sorted(SHIPPED.iterdir())]
    configs = [(folder.parent.name, read_config(folder)) for folder in folders if not is_cascade(folder)]
    return [(name, config.calibration) for name, config in configs if config.calibration]


@pytest.mark.parametrize(
    "points",
    [
        *(pytest.param(points, id=name) for name, points in shipped_curves()),
        # Accuracy by threshold, share: the dense end is worse than the middle, and there is a dip inside.
        pytest.param(
            [
                CalibrationPoint(threshold=threshold, accuracy=accuracy, computation_percentage=50, mac_share=share)
                for threshold, share, accuracy in (
                    (0, 1, 0.939),
                    (0.2, 0.95, 0.94),
                    (0.4, 0.9, 0.945),
                    (0.5, 0.85, 0.93),
                    (0.6, 0.8, 0.935),
                    (0.6, 0.8, 0.935),
                    (0.8, 0.4, 0.94),
                    (1, 0.1, 0.7),
                )
            ],
            id="dips",
        ),
    ],
)
def test_a_larger_budget_never_has_a_lower_expected_accuracy(points: list[CalibrationPoint]) -> None:
    least = min(point.mac_share for point in points)
    budgets = np.unique([*np.linspace(least, 1, 2001), *(point.mac_share for point in points)])
    accuracies = [expected_accuracy(points, threshold_for(points, budget)) for budget in budgets]
    assert np.diff(accuracies).min() >= -1e-12
    # A budget of a point's cost reaches this point.
    for point in points:
        assert expected_accuracy(points, threshold_for(points, point.mac_share)) >= point.accuracy - 1e-12


def test_a_budget_without_a_gain_in_accuracy_is_not_used() -> None:
    points = [
        CalibrationPoint(threshold=threshold, accuracy=accuracy, computation_percentage=50, mac_share=share)
        for threshold, share, accuracy in ((0, 1, 0.939), (0.5, 0.4, 0.945), (1, 0.1, 0.7))
    ]
    assert [threshold_for(points, budget) for budget in (1, 0.7, 0.4)] == [0.5, 0.5, 0.5]
    assert expected_accuracy(points, threshold_for(points, 1)) == 0.945
