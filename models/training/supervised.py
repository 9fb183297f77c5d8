"""Supervised pre-training (SkipNet, section 3.3): hard gates forward, soft gates backward; plain ResNets too."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from models.network import Decide, SkipNet
from models.training.objective import Step
from models.training.recipes import Recipe, Rung

ALL = -30.0
"""A logit that every gate is above: threshold 0 executes every block."""


def straight_through(limits: Tensor) -> Decide:
    """Return a way to decide: 1 where a gate's logit is above its image's limit [N], else 0, with the gradient of the
    probability (paper, equation 3).
    """

    def decide(_: int, logits: Tensor) -> Tensor:
        probability = torch.sigmoid(logits - limits)
        hard = (logits > limits).to(logits.dtype)
        return hard - probability.detach() + probability

    return decide


def soft(_: int, logits: Tensor) -> Tensor:
    """Return decisions [N] between 0 and 1, the probabilities themselves (paper, Table 3: soft gating)."""
    return torch.sigmoid(logits)


def supervised_step(
    network: SkipNet, images: Tensor, labels: Tensor, fallen: Tensor, recipe: Recipe, teacher: SkipNet | None = None
) -> Step:
    """Return the loss of a batch: that of its answers, plus what computing more than the rungs' targets costs.

    ``fallen`` (0..1) is how far the targets have come from 1; ``teacher`` is a dense network to learn from.
    """
    parts = rung_slices(recipe.rungs, len(images))
    limits = images.new_zeros(len(images))
    for rung, part in zip(recipe.rungs, parts, strict=True):
        limits[part] = math.log(rung.threshold / (1 - rung.threshold)) if rung.threshold else ALL
    logits, routing = network(images, soft if recipe.gates == "soft" else straight_through(limits))
    loss = cross_entropy(logits, labels)
    if teacher is not None:
        loss = (1 - recipe.distil) * loss + recipe.distil * distillation(logits, teacher, images, recipe.temperature)
    for rung, part in zip(recipe.rungs, parts, strict=True):
        excess = (routing.computation[part].mean() - 1 + (1 - rung.target) * fallen).clamp(min=0)
        loss = loss + recipe.target_weight * rung.share * excess**2
    correct = (logits.argmax(1) == labels).sum()
    return Step(loss, correct, routing.computation.sum().detach(), routing.decisions.sum(0).detach())


def rung_slices(rungs: Sequence[Rung], images: int) -> list[slice]:
    """Return each rung's part of a batch."""
    ends = [round(images * share) for share in itertools.accumulate((rung.share for rung in rungs), initial=0)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def distillation(logits: Tensor, teacher: SkipNet, images: Tensor, temperature: float) -> Tensor:
    """Return the divergence of a batch's answers from the teacher's, both softened (Hinton et al. 2015, section 2)."""
    with torch.no_grad():
        taught = softmax(teacher(images)[0].float() / temperature, 1)
    return temperature**2 * kl_div(log_softmax(logits.float() / temperature, 1), taught, reduction="batchmean")
