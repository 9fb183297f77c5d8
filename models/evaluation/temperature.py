"""Probabilities that are as sure as they are right: class logits divided by a temperature (Guo et al. 2017).

A network that learned from softened answers of a sure teacher is too sure itself. The temperature goes into the head's
own weights, so that every engine gives the same probabilities; labels and routes stay.
"""

import copy

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.checkpoint import Checkpoint
from models.data.source import Source
from models.engines.protocol import Engine
from models.evaluation.metrics import collect, prepared_batches, routed_by
from models.network import SkipNet

LEAST, MOST, BISECTIONS = 0.05, 20.0, 40


def find_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature at which the probabilities of class logits [N, classes] cost least against labels [N]: the
    least cross-entropy, which is convex in the temperature's inverse.
    """
    logits = logits.double()
    low, high = 1 / MOST, 1 / LEAST
    for _ in range(BISECTIONS):
        inverse = torch.tensor((low * high) ** 0.5, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(cross_entropy(logits * inverse, labels), inverse)
        low, high = (low, inverse.item()) if slope > 0 else (inverse.item(), high)
    return float((low * high) ** -0.5)


def temperature_on(checkpoint: Checkpoint, engine: Engine, source: Source, threshold: float) -> float:
    """Return the temperature for a checkpoint's answers to a split at one execute threshold."""
    batches = prepared_batches(source, checkpoint.config.input)
    logits, labels, _ = collect(routed_by(engine, threshold), batches)
    return find_temperature(torch.from_numpy(logits), torch.from_numpy(labels))


@torch.no_grad()
def temper(network: SkipNet, temperature: float) -> SkipNet:
    """Return a copy of ``network`` whose class logits are divided by ``temperature``."""
    tempered = copy.deepcopy(network)
    for parameter in tempered.head.parameters():
        parameter.div_(temperature)
    return tempered
