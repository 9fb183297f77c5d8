"""Supervised pre-training (SkipNet, section 3.3): hard gates forward, soft gates backward. Trains plain ResNets too."""

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.gates import Limits
from models.network import Decide, SkipNet, run_masked
from models.training.distributed.batch import global_batch
from models.training.distributed.group import share
from models.training.objective import Step, classification_loss
from models.training.recipes import OperatingPoint, Recipe
from models.training.stages.skipping import run_explored


def straight_through(limits: Tensor) -> Decide:
    """Return the hard decision with the gradient of the soft one (paper, equation 3).

    It is 1 if a gate's logit is above its image's limit [N], else 0. Its gradient is that of the probability.
    """

    def decide(_: int, logits: Tensor) -> Tensor:
        probability = torch.sigmoid(logits - limits)
        hard = (logits > limits).to(logits.dtype)
        return hard - probability.detach() + probability

    return decide


def soft(_: int, logits: Tensor) -> Tensor:
    """Return the probabilities [N] as decisions (paper, Table 3: soft gating)."""
    return torch.sigmoid(logits)


def supervised_step(
    network: SkipNet,
    images: Tensor,
    labels: Tensor,
    annealing: Tensor,
    recipe: Recipe,
    teacher_logits: Tensor | None = None,
    random: torch.Generator | None = None,
) -> Step:
    """Return the loss of a batch: the classification loss plus the cost of missing the target rates.

    Each of several processes gets its share of the images, and returns the loss of the global batch.

    Without a per-sample spread, the cost is the squared excess of an operating point's mean computation over its target
    rate. With one, it is the squared difference of each image's computation and its own target rate.

    ``annealing`` (0..1) is the progress of target-rate annealing. ``teacher_logits`` are [N, classes]. With the
    generator ``random``, skipped blocks are explored (`run_explored`). Without it they are masked.
    """
    count = len(images) * share().size
    parts = point_slices(recipe.operating_points, count)
    thresholds = images.new_full((count,), 0.5)
    for point, part in zip(recipe.operating_points, parts, strict=True):
        thresholds[part] = point.threshold
    limits = Limits.of(share().take(thresholds)).logits
    decide: Decide = soft if recipe.gates == "soft" else straight_through(limits)
    run = partial(run_explored, random=random) if random and recipe.gates == "hard" else run_masked
    logits, routing = network(images, decide, run)
    logits, labels, computation = global_batch(logits), global_batch(labels), global_batch(routing.computation)
    teacher_logits = None if teacher_logits is None else global_batch(teacher_logits)
    loss = classification_loss(logits, labels, teacher_logits, recipe)
    reference = logits.detach().float() if teacher_logits is None else teacher_logits
    for point, part in zip(recipe.operating_points, parts, strict=True):
        if part.start == part.stop:
            continue
        target = 1 - (1 - point.target_rate) * annealing
        if recipe.per_sample_spread is None:
            cost = (computation[part].mean() - target).clamp(min=0) ** 2
        else:
            offset = recipe.per_sample_spread * annealing * (difficulty_rank(reference[part], labels[part]) - 0.5)
            cost = ((computation[part] - (target + offset)) ** 2).mean()
        loss = loss + recipe.target_rate_weight * point.share * cost
    correct = (logits.argmax(1) == labels).sum()
    return Step(loss, correct, computation.sum().detach())


def point_slices(points: Sequence[OperatingPoint], count: int) -> list[slice]:
    """Return each operating point's part of a batch of ``count`` images. A part may be empty."""
    ends = [round(count * share) for share in itertools.accumulate((point.share for point in points), initial=0)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def run_teacher(teacher: nn.Module, images: Tensor) -> Tensor:
    """Return the logits float32 [N, classes] of a SkipNet without gates or of a `TeacherNetwork`."""
    with torch.no_grad():
        logits: Tensor = teacher(images)[0] if isinstance(teacher, SkipNet) else teacher(images)
    return logits.float()


def difficulty_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the rank [N], from 0 to 1, of each image among the others by the cross-entropy of logits [N, classes]."""
    ranks = cross_entropy(logits, labels, reduction="none").argsort().argsort()
    return ranks / max(1, len(ranks) - 1)
