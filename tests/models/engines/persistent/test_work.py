"""The persistent kernel executes exactly the instructions that its decisions require."""

import shutil
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from models.blocks import BasicBlock
from models.engines.folding import Convolution, ConvolutionalGate, FoldedNetwork, fold
from models.evaluation.forced_routes import force_route
from models.network import GateKind, SkipNet
from tests.models.engines.persistent.simulated import SimulatedEngine

ROUTES = ["all", "none", "random"]

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here: install g++")


def instructions(convolution: Convolution, side: int) -> int:
    """Return the number of mma.m16n8k16 for a convolution to a map of ``side`` x ``side`` pixels."""
    outputs, inputs, kernel, _ = convolution.weight.shape
    return -(-side * side // 16) * outputs // 8 * -(-inputs // 16) * kernel**2


def expected_work(folded: FoldedNetwork, executed: NDArray[np.bool_]) -> tuple[int, int]:
    """Return tensor-core instructions and barriers of one image with decisions [B-1]."""
    # One barrier precedes the message to the host that the results are there.
    multiplies, barriers = instructions(folded.stem, 32), 2 + 1
    for index, block in enumerate(folded.blocks):
        side = 32 * 16 // len(block.residual[-1].bias)
        runs = index == 0 or bool(executed[index - 1])
        if block.projection is not None:
            multiplies += instructions(block.projection, side)
            barriers += 1
        if runs:
            multiplies += sum(instructions(convolution, side) for convolution in block.residual)
            barriers += 2 if block.projection is None else 1
        if index == len(folded.blocks) - 1 or not folded.gates:
            continue
        gate = folded.gates[index]
        barriers += 1
        if isinstance(gate, ConvolutionalGate):
            side //= 2
            if gate.pools:
                multiplies += instructions(gate.convolutions[0], side)
                barriers += 2
                side //= 2
            multiplies += instructions(gate.convolutions[-1], side)
    return multiplies, barriers


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("gates", ["rnn", "feedforward_1", "feedforward_2"])
def test_only_executed_blocks_are_computed(
    gates: GateKind, route: str, make_images: Callable[[str], NDArray[np.float32]]
) -> None:
    network = SkipNet(stem="cifar", block=BasicBlock, blocks=(3, 2, 4), classes=10, gates=gates).eval()
    decisions = {
        "all": np.ones(network.decision_count, np.bool_),
        "none": np.zeros(network.decision_count, np.bool_),
        "random": np.random.default_rng(4).random(network.decision_count) < 0.5,
    }[route]
    folded = fold(force_route(network, decisions))
    engine = SimulatedEngine(folded)
    output = engine.run(make_images("cifar10")[:1], np.full(1, 0.5, np.float32))
    np.testing.assert_array_equal(output.executed[0], decisions)
    multiplies, barriers = expected_work(folded, decisions)
    assert (engine.counts.multiplies, engine.counts.barriers) == (multiplies, barriers)
    assert (engine.counts.races, engine.counts.outside, engine.counts.diverged) == (0, 0, 0)


def test_one_more_block_is_2304_instructions_and_no_bank_conflict(
    varied_network: Callable[[str], SkipNet], make_images: Callable[[str], NDArray[np.float32]]
) -> None:
    """This holds in each group: 4.72 M MACs, 2048 per instruction. Its reads have no bank conflict."""
    network, images = varied_network("cifar10_rnn_gate_38"), make_images("cifar10_rnn_gate_38")[:1]
    none = np.zeros(17, np.bool_)
    engine = SimulatedEngine(fold(force_route(network, none)))
    engine.run(images, np.full(1, 0.5, np.float32))
    skipped = engine.counts
    for block, reads in ((2, 480), (8, 576), (15, 768)):
        one = none.copy()
        one[block - 1] = True
        engine = SimulatedEngine(fold(force_route(network, one)))
        engine.run(images, np.full(1, 0.5, np.float32))
        more = engine.counts
        assert more.multiplies - skipped.multiplies == 2304
        assert more.matrices - skipped.matrices == reads
        assert more.barriers - skipped.barriers == 2
        assert more.conflicts == skipped.conflicts
