"""Temperature scaling: divide the class logits so that the probabilities are calibrated (Guo et al. 2017).

A network that was trained by distillation is often overconfident. The temperature is applied to the weights of the
head, so that every engine gives the same probabilities. Labels and routes do not change.
"""

import copy

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.checkpoint import Checkpoint
from models.data.source import Source
from models.engines.protocol import Engine
from models.evaluation.metrics import collect, prepared_batches, run_engine
from models.network import SkipNet

LEAST, MOST, BISECTIONS = 0.05, 20.0, 40


def find_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the cross-entropy of class logits [N, classes] and labels [N].

    The cross-entropy is convex in the inverse temperature, which bisection finds.
    """
    logits = logits.double()
    low, high = 1 / MOST, 1 / LEAST
    for _ in range(BISECTIONS):
        inverse = torch.tensor((low * high) ** 0.5, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(cross_entropy(logits * inverse, labels), inverse)
        low, high = (low, inverse.item()) if slope > 0 else (inverse.item(), high)
    return float((low * high) ** -0.5)


def measure_temperature(checkpoint: Checkpoint, engine: Engine, source: Source, threshold: float) -> float:
    """Return the temperature for the outputs of an engine on a split at one execute threshold."""
    batches = prepared_batches(source, checkpoint.config.input)
    logits, labels, _ = collect(run_engine(engine, threshold), batches)
    return find_temperature(torch.from_numpy(logits), torch.from_numpy(labels))


@torch.no_grad()
def scale_temperature(network: SkipNet, temperature: float) -> SkipNet:
    """Return a copy of ``network`` whose class logits are divided by ``temperature``."""
    scaled = copy.deepcopy(network)
    for parameter in scaled.head.parameters():
        parameter.div_(temperature)
    return scaled
