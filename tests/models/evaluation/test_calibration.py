import pytest

from models.checkpoint import CalibrationPoint
from models.evaluation.calibration import halfway, widest_step


def curve(*points: tuple[float, float]) -> list[CalibrationPoint]:
    return [
        CalibrationPoint(threshold=threshold, accuracy=0.9, computation_percentage=50, mac_share=share)
        for threshold, share in points
    ]


def test_the_widest_step_is_split_until_none_exceeds_the_limit() -> None:
    assert widest_step(curve((0, 1), (0.5, 0.9), (0.95, 0.5), (1, 0.4))) == 1
    assert widest_step(curve((0, 1), (0.5, 0.98), (1, 0.95))) is None


def test_a_step_between_neighbours_is_not_divided() -> None:
    assert widest_step(curve((0, 1), (1e-6, 0.6), (0.999999, 0.57), (1, 0.1))) is None


def test_thresholds_are_halved_as_logits() -> None:
    assert halfway(0.1, 0.9) == pytest.approx(0.5)
    assert 0.99 < halfway(0.95, 1) < 1 and 0 < halfway(0, 0.05) < 0.01
