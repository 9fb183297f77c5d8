from dataclasses import replace

import numpy as np
import pytest
import torch

from models.analysis.routes import Outputs, Runner
from models.analysis.sample import Sample
from models.analysis.stability import (
    compare,
    measure_execution_benefit,
    measure_flips,
    measure_reliability,
    run_bfloat16,
)
from models.checkpoint import Checkpoint
from models.network import decide_at
from models.preprocessing import normalise


def outputs(executed: list[list[int]], probability: list[list[float]], predicted: list[int]) -> Outputs:
    return Outputs(np.array(predicted), np.array(executed, np.bool_), np.array(probability, np.float32))


BEFORE = outputs([[1, 0], [0, 0]], [[0.9, 0.25], [0.05, 0.2]], [3, 4])


def test_flip_rates_count_decisions_routes_and_classes() -> None:
    flips = compare(
        "x", BEFORE, replace(BEFORE, executed=np.array([[1, 1], [0, 0]], np.bool_), predicted=np.array([3, 5]))
    )
    assert (flips.decisions, flips.routes, flips.classes, flips.blocks) == (0.25, 0.5, 0.5, 0.5)


def test_reliability_is_by_tenths_of_probability() -> None:
    other = replace(BEFORE, executed=np.array([[1, 1], [0, 0]], np.bool_))
    rows = measure_reliability(BEFORE, [BEFORE, other])
    assert [(row.share, row.executed) for row in rows] == [(0.25, 0.0), (0.5, 0.25), (0.25, 1.0)]
    assert [row.probability for row in rows] == pytest.approx([0.05, 0.225, 0.9])


def test_small_changes_flip_little_and_large_ones_more(checkpoint: Checkpoint, runner: Runner, sample: Sample) -> None:
    flips, rows = measure_flips(checkpoint.network, runner, sample.pixels)
    by_change = {row.change: row for row in flips}
    assert by_change["bfloat16"].decisions < 0.02
    assert by_change["JPEG, quality 95"].decisions <= by_change["JPEG, quality 30"].decisions
    assert by_change["shift by 4 pixels"].decisions > 0
    assert sum(row.share for row in rows) == pytest.approx(1)


def test_bfloat16_rounds_the_probabilities(checkpoint: Checkpoint, runner: Runner, sample: Sample) -> None:
    half, full = run_bfloat16(checkpoint.network, runner, sample.pixels), runner.run(sample.pixels)
    assert not np.array_equal(half.probability, full.probability)
    np.testing.assert_allclose(half.probability.mean(), full.probability.mean(), atol=0.02)


def test_execution_benefit_is_one_blocks_loss_change(checkpoint: Checkpoint, runner: Runner, sample: Sample) -> None:
    few = sample.first(3)
    rows = measure_execution_benefit(checkpoint.network, runner, few.pixels, few.labels)
    assert sum(row.share for row in rows) == pytest.approx(1)
    images, truth = torch.from_numpy(normalise(few.pixels, runner.spec)), torch.from_numpy(few.labels)
    route = decide_at(runner.threshold)

    def loss(gate: int, value: float) -> float:
        with torch.inference_mode():
            logits, _ = checkpoint.network(
                images,
                lambda index, gate_logits: torch.full((3,), value) if index == gate else route(index, gate_logits),
            )
        return float(torch.nn.functional.cross_entropy(logits, truth))

    expected = np.mean([loss(gate, 0.0) - loss(gate, 1.0) for gate in range(17)])
    assert sum(row.share * row.gain for row in rows) == pytest.approx(expected, abs=1e-4)
