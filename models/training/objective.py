"""The classification loss of a training step, and what a step returns."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from models.training.recipes import Recipe


class Step(NamedTuple):
    """The ``loss`` to differentiate, and two sums over the batch: ``correct`` predictions and executed shares."""

    loss: Tensor
    correct: Tensor
    computation: Tensor

    def sums(self, count: int) -> Tensor:
        """Return loss, correct predictions and executed shares, summed over ``count`` images, as float64 [3]."""
        return torch.stack((self.loss.detach() * count, self.correct, self.computation)).double()


def classification_loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, recipe: Recipe) -> Tensor:
    """Return the loss of logits [N, classes] against labels [N] and, if given, against a teacher's logits."""
    loss = cross_entropy(logits, labels)
    if teacher_logits is None:
        return loss
    distilled = distillation_loss(logits, teacher_logits, recipe.temperature)
    return (1 - recipe.distillation_weight) * loss + recipe.distillation_weight * distilled


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the divergence of the softened distributions of student and teacher (Hinton et al. 2015, section 2)."""
    softened = softmax(teacher_logits / temperature, 1)
    return temperature**2 * kl_div(log_softmax(logits.float() / temperature, 1), softened, reduction="batchmean")
