"""Networks with forced routes for benchmarks: gates are computed, but their decisions are given."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray

from models.architectures import Architecture, find_architecture
from models.gates import FeedForwardGate, RNNGate
from models.network import SkipNet
from models.own_gates import CERTAIN, OwnGate


def spread_evenly(decisions: int, share: float) -> NDArray[np.bool_]:
    """Return decisions [B-1] of which ``share`` execute, spread evenly over the network's depth."""
    reached = np.floor(np.arange(decisions + 1) * share + 0.5)
    executed: NDArray[np.bool_] = np.diff(reached) > 0
    return executed


@torch.no_grad()
def force_route(network: SkipNet, executed: NDArray[np.bool_]) -> SkipNet:
    """Return a copy of ``network`` whose gates compute as usual and then decide as ``executed`` [B-1] says.

    An RNN gate's embedding is a constant +1 or -1 in its first dimension. The LSTM forgets everything else and passes
    this value to the readout.
    """
    forced = copy.deepcopy(network)
    for gate, decision in zip(forced.gates, executed, strict=True):
        if isinstance(gate, OwnGate):
            gate.force(bool(decision))
        elif isinstance(gate, FeedForwardGate):
            gate.head.weight.zero_()
            gate.head.bias.copy_(torch.tensor([0.0, CERTAIN if decision else -CERTAIN]))
        else:
            assert isinstance(gate, RNNGate)
            gate.embedding.weight.zero_()
            gate.embedding.bias.zero_()
            gate.embedding.bias[0] = 1.0 if decision else -1.0
    if forced.controller is not None:
        for parameter in forced.controller.parameters():
            parameter.zero_()
        # torch's order of the LSTM's parts: input, forget, cell, output.
        part = forced.controller.rnn.weight_ih.shape[1]
        forced.controller.rnn.weight_ih[2 * part, 0] = CERTAIN
        forced.controller.rnn.bias_ih[part : 2 * part] = -CERTAIN
        forced.controller.rnn.bias_ih[:part] = CERTAIN
        forced.controller.rnn.bias_ih[3 * part :] = CERTAIN
        forced.controller.projection.weight[0, 0] = CERTAIN
    return forced


def without_gates(network: SkipNet, architecture: Architecture) -> SkipNet:
    """Return the plain ResNet with the same weights. It is the reference for the savings."""
    plain = SkipNet(
        stem=architecture.stem,
        block=type(network.blocks[0]),  # type: ignore[arg-type]
        blocks=architecture.blocks,
        classes=network.head.out_features,
        gates=None,
    )
    state = network.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    return plain.eval()


def random_network(name: str) -> SkipNet:
    """Return a network with seeded random weights in evaluation mode, for measurements without a checkpoint."""
    torch.manual_seed(0)
    return find_architecture(name).build().eval()
