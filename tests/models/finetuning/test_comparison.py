"""The execute threshold from a curve, and the verdict about a routed network."""

from dataclasses import replace

import pytest
from scipy.stats import binomtest

from models.checkpoint import CalibrationPoint, Evaluation
from models.finetuning.comparison import Comparison, choose_threshold, wilson_interval
from models.finetuning.plan import DENSE, choose_batch, choose_epochs

EVALUATION = Evaluation(
    dataset="imagefolder", split="validation", images=100, engine="native", execute_threshold=0.5, accuracy=0.9,
    computation_percentage=50, macs=60e6, dense_macs=100_000_000, decisions_skipped=0.5, execution_rate=[0.5, 0.5],
    accuracy_per_class={},
)  # fmt: skip
GOOD = Comparison(0.91, EVALUATION, lost=0.01, lost_error=0.01, dense_ms=4.0, routed_ms=3.0, open_at_half=0.5)


def curve(*points: tuple[float, float, float]) -> list[CalibrationPoint]:
    return [
        CalibrationPoint(threshold=threshold, accuracy=accuracy, computation_percentage=100, mac_share=share)
        for threshold, accuracy, share in points
    ]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0, 0.95, 1.0), (0.3, 0.95, 0.8), (0.5, 0.94, 0.6), (0.7, 0.90, 0.4)], 0.5),
        # The second last point is within the loss, but its neighbours are not.
        (
            [(0, 0.95, 1.0), (0.3, 0.94, 0.8), (0.5, 0.94, 0.7), (0.6, 0.89, 0.5), (0.7, 0.94, 0.4), (0.8, 0.7, 0.3)],
            0.3,
        ),
        # The curve rises again, to points that are good.
        (
            [(0, 0.95, 1.0), (0.3, 0.88, 0.8), (0.4, 0.95, 0.6), (0.5, 0.95, 0.5), (0.6, 0.94, 0.5), (0.7, 0.8, 0.4)],
            0.5,
        ),
        # At equal cost the lower threshold is chosen.
        ([(0, 0.95, 1.0), (0.3, 0.95, 0.8), (0.5, 0.95, 0.8), (0.7, 0.80, 0.4)], 0.3),
        ([(0, 0.90, 1.0), (0.5, 0.90, 0.5)], 0),
    ],
)
def test_the_threshold_is_the_cheapest_within_the_loss(
    points: list[tuple[float, float, float]], expected: float
) -> None:
    assert choose_threshold(curve(*points), dense_accuracy=0.95, max_loss=0.02) == expected


@pytest.mark.parametrize(
    ("changes", "macs", "messages"),
    [
        ({}, 60e6, []),
        ({"lost": 0.02}, 60e6, []),
        ({"lost": 0.021}, 60e6, ["it loses 2.1 points of accuracy to its dense network, and --max-loss allows 2"]),
        ({}, 99.5e6, ["it saves nothing: 99.5 M MACs of 100.0 M"]),
        ({"open_at_half": 0.0}, 60e6, []),
        ({"lost": 0.5, "open_at_half": 0.0}, 60e6, ["its gates are closed", "it loses 50.0 points"]),
        ({"open_at_half": 0.0}, 101e6, ["its gates are closed", "it saves nothing"]),
    ],
)
def test_every_reason_not_to_publish_is_named(changes: dict[str, float], macs: float, messages: list[str]) -> None:
    comparison = replace(GOOD, routed=EVALUATION.model_copy(update={"macs": macs}), **changes)
    found = comparison.problems(0.02)
    assert len(found) == len(messages)
    assert all(problem.startswith(message) for problem, message in zip(found, messages, strict=True))


def test_the_verdict_has_the_savings_and_the_loss() -> None:
    assert GOOD.verdict() == (
        "Routing paid: 40% of the MACs and 25% of the time saved on this machine, for 1.0 points of accuracy (standard "
        "error 1.0)."
    )
    assert (
        replace(GOOD, routed_ms=4.5).verdict().startswith("Routing did not pay: 40% of the MACs and -12% of the time")
    )
    text = GOOD.describe()
    assert "on 100 validation images:" in text and "90.0% (95 % confidence: 82.6% to 94.5%)" in text


@pytest.mark.parametrize(("correct", "images"), [(90, 100), (10, 10), (0, 10)])
def test_the_interval_is_that_of_scipy(correct: int, images: int) -> None:
    expected = binomtest(correct, images).proportion_ci(method="wilson")
    assert wilson_interval(correct / images, images) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_sizes_follow_the_number_of_images() -> None:
    assert [choose_batch(images) for images in (6, 16, 320, 1000, 9000)] == [6, 8, 16, 32, 64]
    assert [choose_epochs(images, DENSE) for images in (16, 320, 9000)] == [60, 12, 3]
