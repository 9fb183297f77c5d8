"""The gates' last layers, set before a stage begins: opened for SP, sharpened for HRL."""

import torch
from torch import nn

from models.gates import FeedForwardGate
from models.network import SkipNet


def readouts(network: SkipNet) -> list[nn.Linear]:
    """Return the layers whose output is a gate's logit: one that all RNN gates share, or one a feed-forward gate."""
    if network.controller is not None:
        return [network.controller.projection]
    return [gate.head for gate in network.gates if isinstance(gate, FeedForwardGate)]


@torch.no_grad()
def open_gates(network: SkipNet, logit: float) -> None:
    """Bias every gate toward executing, so that the network learns to classify before it learns to skip."""
    for readout in readouts(network):
        # A feed-forward gate's two outputs are skip and execute; an RNN gate's one is the logit itself.
        readout.bias.zero_()
        readout.bias[-1] = logit


@torch.no_grad()
def sharpen_gates(network: SkipNet, factor: float) -> None:
    """Multiply every gate's logit by ``factor``: the same decisions at threshold 0.5, taken with more certainty.

    SP leaves logits near 0, where a sampled decision is a coin's. Routes drawn from such gates have little in
    common with the routes that the network was trained on, and its accuracy falls by half before HRL has begun.
    (The public code's ImageNet gates have a temperature for the same reason.)
    """
    for readout in readouts(network):
        readout.weight.mul_(factor)
        readout.bias.mul_(factor)
