"""What a training step is to learn and what it answers, whatever its stage."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from models.training.recipes import Recipe


class Step(NamedTuple):
    """``loss`` to differentiate; sums over the batch of correct answers and of executed share."""

    loss: Tensor
    correct: Tensor
    computation: Tensor

    def sums(self, images: int) -> Tensor:
        """Return loss, correct answers and executed share, summed over the images, as one [3]."""
        return torch.stack((self.loss.detach() * images, self.correct, self.computation)).double()


def answer_loss(logits: Tensor, labels: Tensor, answers: Tensor | None, recipe: Recipe) -> Tensor:
    """Return the loss of class logits [N, classes] against labels [N] and, where there are any, a teacher's answers."""
    loss = cross_entropy(logits, labels)
    if answers is None:
        return loss
    return (1 - recipe.distil) * loss + recipe.distil * distillation(logits, answers, recipe.temperature)


def distillation(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """Return the divergence of logits from a teacher's, ``answers``, both softened (Hinton et al. 2015, section 2)."""
    soft_answers = softmax(answers / temperature, 1)
    return temperature**2 * kl_div(log_softmax(logits.float() / temperature, 1), soft_answers, reduction="batchmean")
