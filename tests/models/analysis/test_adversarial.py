import numpy as np

from models.analysis.adversarial import attack, measure_attacks
from models.analysis.routes import Runner
from models.analysis.sample import Sample
from models.checkpoint import Checkpoint


def test_attack_executes_more_blocks_within_its_bound(checkpoint: Checkpoint, runner: Runner, sample: Sample) -> None:
    pixels = sample.pixels[:6]
    pushed = attack(checkpoint.network, runner.spec, pixels, runner.threshold, bound=8)
    moved = pushed.astype(int) - pixels
    assert 0 < np.abs(moved).max() <= 8
    assert runner.run(pushed).blocks.mean() >= runner.run(pixels).blocks.mean() + 1


def test_attack_is_measured_by_the_engine(checkpoint: Checkpoint, runner: Runner, sample: Sample) -> None:
    few = sample.first(4)
    noise, pushed = measure_attacks(checkpoint.network, runner, checkpoint.macs, few, (8,))
    before = checkpoint.macs.executed(runner.run(few.pixels).executed).mean() / checkpoint.macs.dense
    assert (noise.kind, pushed.kind, pushed.images) == ("random noise", "attack", 4)
    assert np.isclose(noise.mac_share_before, before) and noise.mac_share_before == pushed.mac_share_before
    full = checkpoint.macs.executed(np.ones((1, 17), np.bool_))[0] / checkpoint.macs.dense
    assert np.isclose(pushed.saving_taken_back, (pushed.mac_share_after - before) / (full - before))
    assert pushed.saving_taken_back > noise.saving_taken_back
