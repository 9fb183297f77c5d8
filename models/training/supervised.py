"""Supervised pre-training (SkipNet, section 3.3): hard gates forward, soft gates backward; plain ResNets too."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.network import SkipNet
from models.training.objective import Step
from models.training.recipes import Recipe


def straight_through(_: int, logits: Tensor) -> Tensor:
    """Return decisions [N] that are 0 or 1, with the gradient of the probability (paper, equation 3)."""
    probability = torch.sigmoid(logits)
    hard = (logits > 0).to(logits.dtype)
    return hard - probability.detach() + probability


def supervised_step(network: SkipNet, images: Tensor, labels: Tensor, target: Tensor, recipe: Recipe) -> Step:
    """Return the loss of a batch: cross-entropy, plus what computing more than ``target`` costs."""
    logits, routing = network(images, straight_through)
    loss = cross_entropy(logits, labels)
    if recipe.target is not None:
        loss = loss + recipe.target_weight * (routing.computation.mean() - target).clamp(min=0) ** 2
    correct = (logits.argmax(1) == labels).sum()
    return Step(loss, correct, routing.computation.sum().detach(), routing.decisions.sum(0).detach())
