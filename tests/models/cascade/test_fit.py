from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.cascade.confidence import confidence, failure_auroc, probabilities
from models.cascade.config import CascadePoint
from models.cascade.fit import StageOutputs, fit_cascade, upper_envelope
from models.checkpoint import read_checkpoint
from models.errors import UserError
from tests.models.cascade.conftest import FIRST, SECOND

IMAGES = 2000


@pytest.fixture(scope="module")
def labels() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 10, IMAGES)


def stage_outputs(labels: NDArray[np.int64], noise: float, macs: int, threshold: float, seed: int) -> StageOutputs:
    """Return logits whose error rate grows with ``noise``."""
    logits = np.random.default_rng(seed).normal(size=(IMAGES, 10)) * noise
    logits[np.arange(IMAGES), labels] += 3
    return StageOutputs(threshold, logits.astype(np.float32), np.full(IMAGES, macs, np.int64))


def test_the_operating_point_escalates_the_requested_share(stages: Path, labels: NDArray[np.int64]) -> None:
    checkpoints = [read_checkpoint(stages / name / "1") for name in (FIRST, SECOND)]
    dense = checkpoints[1].macs.dense
    outputs = [[stage_outputs(labels, 1.5, dense // 2, 0.5, 1)], [stage_outputs(labels, 0.8, dense, 0.5, 2)]]
    config = fit_cascade(checkpoints, outputs, labels, escalate=0.1)
    sure = confidence(probabilities(outputs[0][0].logits, config.stages[0].temperature))
    assert config.stages[0].margin is not None and config.stages[1].margin is None
    assert (sure < np.float32(config.stages[0].margin)).mean() == pytest.approx(0.1, abs=0.002)
    [point] = [each for each in config.curve if each.margins == (config.stages[0].margin,)]
    assert point.mac_share == pytest.approx(0.6, abs=0.002)
    alone = (outputs[0][0].logits.argmax(1) == labels).mean()
    assert point.accuracy > alone + 0.02, "the second stage corrects the least confident outputs"


def test_a_budget_is_kept(stages: Path, labels: NDArray[np.int64]) -> None:
    checkpoints = [read_checkpoint(stages / name / "1") for name in (FIRST, SECOND)]
    dense = checkpoints[1].macs.dense
    outputs = [[stage_outputs(labels, 1.5, dense // 2, 0.5, 1)], [stage_outputs(labels, 0.8, dense, 0.5, 2)]]
    config = fit_cascade(checkpoints, outputs, labels, budget=0.65)
    chosen = next(each for each in config.curve if each.margins == (config.stages[0].margin,))
    assert 0.6 < chosen.mac_share <= 0.65
    with pytest.raises(UserError, match=r"budget 0.4 cannot be met: the first stage alone takes 0.5"):
        fit_cascade(checkpoints, outputs, labels, budget=0.4)


def test_stages_of_other_labels_do_not_fit(stages: Path, labels: NDArray[np.int64]) -> None:
    checkpoint = read_checkpoint(stages / FIRST / "1")
    with pytest.raises(UserError, match="at least two stages"):
        fit_cascade([checkpoint], [[stage_outputs(labels, 1, 1, 0.5, 1)]], labels)


def test_the_envelope_rises() -> None:
    values = [(0.5, 0.90), (0.4, 0.91), (0.6, 0.95), (0.7, 0.94), (0.6, 0.93), (0.9, 0.96)]
    points = [
        CascadePoint(thresholds=(0.5, 0.5), margins=(0.1,), accuracy=accuracy, mac_share=share, escalated=(0.1,))
        for share, accuracy in values
    ]
    assert [(each.mac_share, each.accuracy) for each in upper_envelope(points)] == [
        (0.4, 0.91),
        (0.6, 0.95),
        (0.9, 0.96),
    ]


def test_auroc_counts_pairs() -> None:
    sure = np.array([0.1, 0.4, 0.4, 0.9, 0.8], np.float32)
    correct = np.array([False, False, True, True, True])
    pairs = [
        1.0 if right > wrong else 0.5 if right == wrong else 0.0 for right in sure[correct] for wrong in sure[~correct]
    ]
    assert failure_auroc(sure, correct) == pytest.approx(np.mean(pairs))
    with pytest.raises(ValueError, match="correct and wrong"):
        failure_auroc(sure, np.ones(5, np.bool_))


def test_measures_of_confidence_are_between_0_and_1() -> None:
    shares = np.array([[1, 0, 0], [0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]], np.float32)
    np.testing.assert_allclose(confidence(shares, "margin"), [1, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(confidence(shares, "maximum"), [1, 0.5, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(confidence(shares, "entropy"), [1, 1 - 1.0297 / np.log(3), 0], atol=1e-4)
