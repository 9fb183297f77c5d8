import numpy as np
import pytest
import torch

from models.analysis.routes import Runner, path_shares, rank_correlation
from models.analysis.sample import Sample
from models.checkpoint import Checkpoint
from models.network import decide_at
from models.preprocessing import normalise


def test_rank_correlation_gives_ties_their_mean_rank() -> None:
    assert rank_correlation(np.array([1, 2, 3, 100]), np.array([0.1, 0.2, 0.3, 0.4])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    # By hand: ranks 1.5, 1.5, 3 and 1, 2, 3.
    assert rank_correlation(np.array([5, 5, 9]), np.array([1, 2, 3])) == pytest.approx(1.5 / np.sqrt(1.5 * 2))
    assert rank_correlation(np.array([1, 1]), np.array([1, 2])) == 0


def test_paths_are_counted_largest_first() -> None:
    executed = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], np.bool_)
    assert path_shares(executed) == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 1])
def test_decisions_of_the_network_are_those_of_the_engine(
    checkpoint: Checkpoint, runner: Runner, sample: Sample, threshold: float
) -> None:
    outputs = Runner(runner.engine, runner.spec, threshold).run(sample.pixels)
    with torch.inference_mode():
        _, routing = checkpoint.network(torch.from_numpy(normalise(sample.pixels, runner.spec)), decide_at(threshold))
    np.testing.assert_array_equal(outputs.executed, routing.decisions.numpy() > 0)
    assert outputs.blocks.min() >= 1
