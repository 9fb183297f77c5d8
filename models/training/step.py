"""A training step of each stage: from a batch to the gradients of its loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.data.augmentation import mixup
from models.data.batches import Batches, generator
from models.network import SkipNet, run_masked
from models.training.distributed.gradients import sum_gradients
from models.training.distributed.group import share
from models.training.graph_capture import CapturedStep
from models.training.objective import Step
from models.training.recipes import Recipe
from models.training.stages.reinforce import draw, reinforce_step
from models.training.stages.skipping import run_executed
from models.training.stages.supervised import run_teacher, supervised_step
from models.training.types import Job

SAMPLING, MIXUP = 1 << 20, 1 << 21
"""Offsets of the epoch in a generator's seed. With them, sampling, mixup and augmentation draw different numbers."""

TakeStep = Callable[[Tensor, Tensor, float, int, int], Step]
"""Maps a batch's images and labels, the progress of annealing, the epoch, and the step within it to a `Step`."""


def make_step(job: Job, recipe: Recipe, batches: Batches) -> TakeStep:
    """Build the stage's step, which stores the gradients in the network's parameters.

    On the CPU, skipped blocks are not computed. On CUDA and in compiled steps they are masked: a block that skips
    images computes a different number each time, and the host would wait for the device at every gate. Each of several
    processes takes its share of the batch, and all end with the same gradients.
    """
    network, hybrid, masked = job.network, recipe.stage == "hrl", is_masked(recipe, job.device)
    captured = is_captured(recipe, job.device)
    explores = not (hybrid or masked or job.compile)
    teacher = job.teacher if recipe.distillation_weight else None
    forward_backward = make_forward_backward(
        network,
        recipe,
        job.device,
        job.mixed,
        masked=masked,
        compiles=job.compile,
        online_teacher=teacher if isinstance(teacher, nn.Module) else None,
    )
    captured_step = CapturedStep(network, forward_backward)

    def take(images: Tensor, labels: Tensor, annealing: float, epoch: int, within: int) -> Step:
        random = generator(job.seed, epoch + SAMPLING, within)
        own = share()
        uniform = draw(len(images) * own.size, network.decision_count, recipe, random) if hybrid else None
        logits = teacher[batches.chosen(epoch, within)] if isinstance(teacher, Tensor) else None
        if recipe.mixup:
            images = mixup(images, recipe.mixup, generator(job.seed, epoch + MIXUP, within), own)
        rest = (None if each is None else each.to(job.device, non_blocking=True) for each in (uniform, logits))
        inputs = images, labels, torch.tensor(annealing).to(job.device, non_blocking=True), *rest
        return captured_step(*inputs) if captured else forward_backward(*inputs, random if explores else None)

    return take


def is_masked(recipe: Recipe, device: torch.device) -> bool:
    """Return whether a stage's steps compute every block.

    They do on CUDA, unless batch norm uses the statistics of the executed images.
    """
    return device.type == "cuda" and not (recipe.stage == "hrl" and recipe.statistics == "executed")


def is_captured(recipe: Recipe, device: torch.device) -> bool:
    """Return whether a stage's steps are captured: masked steps of a single process."""
    return is_masked(recipe, device) and share().size == 1


def make_forward_backward(
    network: SkipNet,
    recipe: Recipe,
    device: torch.device,
    mixed: bool,
    *,
    masked: bool,
    compiles: bool = False,
    online_teacher: nn.Module | None = None,
) -> Callable[..., Step]:
    """Build the forward and backward function, which stores a batch's gradients in the network's parameters.

    Its inputs are images, labels, the progress of annealing, HRL's random numbers or None, a teacher's logits or None,
    and in SP a generator or None. With a generator, skipped blocks are not computed, except those that are explored.
    HRL does not compute skipped blocks unless ``masked``. ``online_teacher`` computes the teacher's logits in each
    step; ``mixed`` uses bfloat16.
    """
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=mixed)
    run = run_masked if masked else run_executed
    supervised = torch.compile(supervised_step, dynamic=False) if compiles else supervised_step

    def forward(
        images: Tensor,
        labels: Tensor,
        annealing: Tensor,
        uniform: Tensor | None,
        teacher_logits: Tensor | None,
        random: torch.Generator | None = None,
    ) -> Step:
        if online_teacher is not None:
            teacher_logits = run_teacher(online_teacher, images)
        if uniform is not None:
            return reinforce_step(network, images, labels, recipe, uniform, run, teacher_logits)
        return supervised(network, images, labels, annealing, recipe, teacher_logits, random)

    def forward_backward(*inputs: Any) -> Step:
        network.zero_grad(set_to_none=True)
        with autocast:
            step = forward(*inputs)
        step.loss.backward()  # type: ignore[no-untyped-call]
        sum_gradients(network)
        return step

    return forward_backward
