import numpy as np
import pytest

from models.architectures import find_architecture
from models.macs import count_macs


def gate_share(name: str) -> float:
    counts = count_macs(find_architecture(name).build(), 32, 32)
    return counts.gates[0] / counts.blocks[0]


def test_gates_cost_the_macs_of_their_layers() -> None:
    assert gate_share("cifar10_feedforward_38") == pytest.approx(0.156, abs=1e-3)
    assert gate_share("cifar10_feedforward_110") == pytest.approx(0.125, abs=1e-4)
    # Embedding 16 x 10, LSTM 40 x (10 + 10), projection 10.
    assert count_macs(find_architecture("cifar10_rnn_gate_38").build(), 32, 32).gates[0] == 160 + 800 + 10


def test_executed_macs_count_the_blocks_that_ran() -> None:
    counts = count_macs(find_architecture("cifar10_rnn_gate_38").build(), 32, 32)
    executed = np.zeros((3, 17), np.bool_)
    executed[1] = True
    executed[2, 4] = True
    none, every, one = counts.executed(executed)
    assert every == counts.dense + sum(counts.gates)
    assert one - none == counts.blocks[5]
    assert none == counts.stem + counts.blocks[0] + sum(counts.projections) + sum(counts.gates) + counts.head
    assert (counts.executed(executed, "mask") == every).all()
