"""A training step of each stage: from a batch to the gradients of its loss."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.data.augmentation import mixup
from models.data.batches import Batches, generator
from models.network import SkipNet, run_masked
from models.training.graph_capture import RecordedStep
from models.training.objective import Step
from models.training.recipes import Recipe
from models.training.stages.reinforce import draw, reinforce_step
from models.training.stages.skipping import run_executed
from models.training.stages.supervised import supervised_step, taught

if TYPE_CHECKING:
    from models.training.loop import Job

SAMPLING = 1 << 20
OVERLAYING = 1 << 21
"""They keep the generators of sampled gates and of overlaid images apart from that of augmentation, which knows no such
epoch.
"""

TakeStep = Callable[[Tensor, Tensor, float, int, int], Step]
"""A batch's images and labels, how far the targets have fallen, the epoch and the step in it."""


def make_step(job: "Job", recipe: Recipe, batches: Batches) -> TakeStep:
    """Return the stage's step, which leaves its gradients in the network's parameters.

    On the CPU blocks really skip. On CUDA, and compiled, they are masked: skipping, a block computes another number of
    images each time, and the host would wait for it at every gate.
    """
    network, hybrid, recorded = job.network, recipe.stage == "hrl", is_recorded(recipe, job.device)
    explores = not (hybrid or recorded or job.compile)
    teacher = job.teacher if recipe.distil else None
    asked = teacher if isinstance(teacher, nn.Module) else None
    descend = make_descent(network, recipe, job.device, job.mixed, masked=recorded, compiles=job.compile, asked=asked)
    recording = RecordedStep(network, descend)

    def take(images: Tensor, labels: Tensor, fallen: float, epoch: int, within: int) -> Step:
        random = generator(job.seed, epoch + SAMPLING, within)
        uniform = draw(len(images), network.decision_count, recipe, random) if hybrid else None
        answers = teacher[batches.chosen(epoch, within)] if isinstance(teacher, Tensor) else None
        if recipe.overlaid:
            images = mixup(images, recipe.overlaid, generator(job.seed, epoch + OVERLAYING, within))
        drawn = (None if each is None else each.to(job.device, non_blocking=True) for each in (uniform, answers))
        inputs = images, labels, torch.tensor(fallen).to(job.device, non_blocking=True), *drawn
        return recording(*inputs) if recorded else descend(*inputs, random if explores else None)

    return take


def is_recorded(recipe: Recipe, device: torch.device) -> bool:
    """Whether a stage's steps are recorded: on CUDA, but where batch norm is to see the executed images alone."""
    return device.type == "cuda" and not (recipe.stage == "hrl" and recipe.statistics == "executed")


def make_descent(
    network: SkipNet,
    recipe: Recipe,
    device: torch.device,
    mixed: bool,
    *,
    masked: bool,
    compiles: bool = False,
    asked: nn.Module | None = None,
) -> Callable[..., Step]:
    """Return what leaves a batch's gradients in the network's parameters.

    It is given images and labels, how far the targets have fallen, HRL's draw or None, and a teacher's answers or None;
    ``asked`` is a teacher that answers then. Where SP is given a generator too, blocks really skip and some are
    explored; HRL's skip unless they are ``masked``.
    """
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=mixed)
    run = run_masked if masked else run_executed
    supervised = torch.compile(supervised_step, dynamic=False) if compiles else supervised_step

    def forward(
        images: Tensor,
        labels: Tensor,
        fallen: Tensor,
        uniform: Tensor | None,
        answers: Tensor | None,
        random: torch.Generator | None = None,
    ) -> Step:
        if asked is not None:
            answers = taught(asked, images)
        if uniform is not None:
            return reinforce_step(network, images, labels, recipe, uniform, run, answers)
        return supervised(network, images, labels, fallen, recipe, answers, random)

    def descend(*inputs: Any) -> Step:
        network.zero_grad(set_to_none=True)
        with autocast:
            step = forward(*inputs)
        step.loss.backward()  # type: ignore[no-untyped-call]
        return step

    return descend
