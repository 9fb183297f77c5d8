"""The gates' output layers, adjusted before a stage: their bias for SP, the scale of their logits for HRL."""

import torch
from torch import nn

from models.gates import FeedForwardGate
from models.network import SkipNet
from models.own_gates import OwnGate


def readouts(network: SkipNet) -> list[nn.Linear]:
    """Return the layers that output the gates' logits: one shared by all RNN gates, or one per other gate."""
    if network.controller is not None:
        return [network.controller.projection]
    return [gate.head for gate in network.gates if isinstance(gate, FeedForwardGate | OwnGate)]


@torch.no_grad()
def set_gate_bias(network: SkipNet, logit: float) -> None:
    """Bias every gate toward executing, so that the network learns to classify before it learns to skip."""
    for readout in readouts(network):
        # A feed-forward gate's two outputs are skip and execute; an RNN gate's one is the logit itself.
        readout.bias.zero_()
        readout.bias[-1] = logit


@torch.no_grad()
def scale_gate_logits(network: SkipNet, factor: float) -> None:
    """Multiply every gate's logit by ``factor``: the same decisions at threshold 0.5, sampled with more certainty.

    After SP the logits are near 0, and gates sample decisions with probabilities near 0.5. Such routes differ from
    those that the network was trained on, and its accuracy is half as high when HRL begins. The ImageNet gates of the
    public code have a temperature for the same reason.
    """
    for readout in readouts(network):
        readout.weight.mul_(factor)
        readout.bias.mul_(factor)
