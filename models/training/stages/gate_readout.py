"""Adjust the gates' output layers before a stage: their bias for SP, the scale of their logits for HRL."""

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
    """Set the bias of every gate so that it executes. The network then learns to classify before it learns to skip."""
    for readout in readouts(network):
        # A feed-forward gate has two outputs, skip and execute. An RNN gate has one, the logit.
        readout.bias.zero_()
        readout.bias[-1] = logit


@torch.no_grad()
def scale_gate_logits(network: SkipNet, factor: float) -> None:
    """Multiply every gate's logit by ``factor``.

    Decisions at threshold 0.5 stay the same, and sampled ones become more certain.

    After SP the logits are near 0, and gates sample decisions with probabilities near 0.5. Such routes differ from
    those that the network was trained on, and its accuracy is half as high when HRL begins. The ImageNet gates of the
    public code have a temperature for the same reason.
    """
    for readout in readouts(network):
        readout.weight.mul_(factor)
        readout.bias.mul_(factor)
