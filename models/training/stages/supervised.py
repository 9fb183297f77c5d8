"""Supervised pre-training (SkipNet, section 3.3): hard gates forward, soft gates backward; plain ResNets too."""

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.network import Decide, SkipNet, run_masked
from models.thresholds import Limits
from models.training.objective import Step, answer_loss
from models.training.recipes import Recipe, Rung
from models.training.stages.skipping import run_explored


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
    network: SkipNet,
    images: Tensor,
    labels: Tensor,
    fallen: Tensor,
    recipe: Recipe,
    answers: Tensor | None = None,
    random: torch.Generator | None = None,
) -> Step:
    """Return the loss of a batch: that of its answers, plus what computing more than the rungs' targets costs; with a
    spread, what missing each image's own target costs.

    ``fallen`` (0..1) is how far the targets have come from 1; ``answers`` are a teacher's logits [N, classes]. With
    ``random`` to draw from, blocks that are skipped are explored (`run_explored`), without it they are masked.
    """
    parts = rung_slices(recipe.rungs, len(images))
    thresholds = images.new_full((len(images),), 0.5)
    for rung, part in zip(recipe.rungs, parts, strict=True):
        thresholds[part] = rung.threshold
    decide: Decide = soft if recipe.gates == "soft" else straight_through(Limits.of(thresholds).logits)
    run = partial(run_explored, random=random) if random and recipe.gates == "hard" else run_masked
    logits, routing = network(images, decide, run)
    loss = answer_loss(logits, labels, answers, recipe)
    judge = logits.detach().float() if answers is None else answers
    for rung, part in zip(recipe.rungs, parts, strict=True):
        if part.start == part.stop:
            continue
        target = 1 - (1 - rung.target) * fallen
        if recipe.spread is None:
            cost = (routing.computation[part].mean() - target).clamp(min=0) ** 2
        else:
            own = target + recipe.spread * fallen * (hardness(judge[part], labels[part]) - 0.5)
            cost = ((routing.computation[part] - own) ** 2).mean()
        loss = loss + recipe.target_weight * rung.share * cost
    correct = (logits.argmax(1) == labels).sum()
    return Step(loss, correct, routing.computation.sum().detach())


def rung_slices(rungs: Sequence[Rung], images: int) -> list[slice]:
    """Return each rung's part of a batch, which a small one may leave empty."""
    ends = [round(images * share) for share in itertools.accumulate((rung.share for rung in rungs), initial=0)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def taught(teacher: nn.Module, images: Tensor) -> Tensor:
    """Return the logits [N, classes] of a teacher, a SkipNet without gates or a wide network, in float32."""
    with torch.no_grad():
        logits: Tensor = teacher(images)[0] if isinstance(teacher, SkipNet) else teacher(images)
    return logits.float()


def hardness(answers: Tensor, labels: Tensor) -> Tensor:
    """Return how hard each of some images is among them [N], from 0 to 1: its rank by the cross-entropy of answers."""
    ranks = cross_entropy(answers, labels, reduction="none").argsort().argsort()
    return ranks / max(1, len(ranks) - 1)
