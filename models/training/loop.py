"""A training run: stages one after the other, epochs logged, state saved, checkpoints written.

    skipnet train --arch cifar10_rnn_gate_38 --dataset cifar10                      SP, then HRL, from the hub
    skipnet train --arch cifar10_rnn_gate_38 --dataset cifar10 --data FOLDER \\
        --recipe short --epochs 1 --limit 2560 --output runs/try                    a try on a CPU: a minute
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.architectures import Architecture
from models.checkpoint import Config, code_version, write_checkpoint
from models.data.batches import Batches
from models.errors import UserError
from models.evaluation.metrics import Metrics
from models.network import SkipNet
from models.preprocessing import InputSpec
from models.training.recipes import Recipe
from models.training.schedule import annealing_progress, learning_rate
from models.training.stages.batch_norm import freeze_statistics
from models.training.stages.gate_readout import scale_gate_logits, set_gate_bias
from models.training.stages.reinforce import re_estimate_statistics
from models.training.state import LOG, Progress, StateFile, Stopwatch, cut_log, log_row
from models.training.step import make_step

Evaluate = Callable[[SkipNet], Metrics]
RE_ESTIMATED = 100
"""Batches from which batch norm's statistics are taken anew."""


@dataclass(frozen=True)
class Job:
    """Everything that decides a run.

    ``batches`` gives a recipe's batches, ``validate`` measures a network on the validation images. ``mixed`` runs
    convolutions in bfloat16. ``teacher`` is a network, or the logits [N, classes] of one for all images;
    ``teacher_name`` is its name in the stages' records. ``origins`` are the files that the run starts and learns from,
    ``earlier`` the records of the stages before it.
    """

    architecture: Architecture
    network: SkipNet
    labels: list[str]
    spec: InputSpec
    recipes: list[Recipe]
    batches: Callable[[Recipe], Batches]
    validate: Evaluate
    device: torch.device
    seed: int
    folder: Path
    compile: bool
    mixed: bool
    teacher: nn.Module | Tensor | None
    teacher_name: str
    origins: dict[str, str]
    about: dict[str, Any]
    earlier: list[dict[str, Any]]
    data: str = ""
    """A line that describes the data, for the user."""

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        values = {
            f"{recipe.stage} {key}": value for recipe in self.recipes for key, value in stage_summary(recipe).items()
        }
        return {
            "architecture": self.architecture.name,
            "stages": [recipe.stage for recipe in self.recipes],
            "seed": self.seed,
            "size": self.spec.height,
            "compile": self.compile,
            **self.origins,
            **self.about,
            **values,
        }


class Watcher(Protocol):
    """Is told of a run while it goes on: for metrics that are scraped."""

    def stepped(self, recipe: Recipe, step: int, steps: int, images: int, rate: float) -> None:
        """Step number ``step`` of the stage's ``steps`` is done, on ``images`` images at learning rate ``rate``."""

    def logged(self, row: dict[str, Any]) -> None:
        """An epoch is over, and ``row`` was appended to ``log.jsonl``."""


def train(
    job: Job,
    *,
    resume: bool,
    save_every: float,
    show: Callable[[Iterator[int]], Iterator[int]],
    watcher: Watcher | None = None,
) -> Path:
    """Run the job's stages and return the folder of the last stage's checkpoint.

    ``show`` wraps the steps of an epoch, for a progress bar. Raises UserError where ``resume`` finds a state that
    is damaged or another run's, or without it the folder holds an unfinished run; UserError where the loss is
    no longer a number.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    state = StateFile(job.folder, job.identity, save_every)
    progress, optimizer_state = Progress(), None
    if not resume:
        state.require_finished()
        # Killed before it is saved first, this run is not to go on as the one before.
        state.path.unlink(missing_ok=True)
    elif state.path.exists():
        progress, optimizer_state = state.load(job.network)
    cut_log(job.folder / LOG, progress)
    for network in (job.network, job.teacher):
        if isinstance(network, nn.Module):
            network.to(job.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for number in range(progress.stage, len(job.recipes)):
        run_stage(job, job.recipes[number], progress, optimizer_state, state, show, watcher)
        write_stage_checkpoint(job, job.recipes[number])
        progress, optimizer_state = Progress(stage=number + 1, logged=progress.logged), None
        state.save(progress, job.network, None)
    return job.folder / job.recipes[-1].stage


def run_stage(
    job: Job,
    recipe: Recipe,
    progress: Progress,
    optimizer_state: dict[str, Any] | None,
    state: StateFile,
    show: Callable[[Iterator[int]], Iterator[int]],
    watcher: Watcher | None,
) -> None:
    batches = job.batches(recipe)
    total = recipe.steps(batches.steps_per_epoch)
    choose_learners(job.network, recipe)
    optimizer = make_optimizer(job.network, recipe)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    else:
        initialise_gates(job.network, recipe)
    take_step = make_step(job, recipe, batches)
    while progress.step < total:
        epoch, start = divmod(progress.step, batches.steps_per_epoch)
        stop = min(batches.steps_per_epoch, total - epoch * batches.steps_per_epoch)
        job.network.train()
        if recipe.freeze_backbone or (recipe.stage == "hrl" and recipe.statistics != "executed"):
            freeze_statistics(job.network)
        steps = zip(show(iter(range(start, stop))), batches.epoch(epoch, start), strict=False)
        watch = Stopwatch()
        for within, (images, labels) in steps:
            rate = learning_rate(recipe, progress.step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            annealing = annealing_progress(recipe, progress.step, total)
            step = take_step(images, labels, annealing, epoch, within)
            optimizer.step()
            progress.add(step, len(labels) * recipe.routes, *watch.lap())
            if watcher:
                watcher.stepped(recipe, progress.step, total, len(labels), rate)
            # The epoch's last step is saved below, when its row is in the log.
            if state.due() and within + 1 < stop:
                state.save(progress, job.network, optimizer)
        re_estimates = recipe.stage == "hrl" and recipe.statistics == "re-estimated" and not recipe.freeze_backbone
        if progress.step == total and re_estimates:
            re_estimate_statistics(job.network, (images for images, _ in islice(batches.epoch(0), RE_ESTIMATED)))
        row = log_epoch(job, recipe, progress, epoch)
        if watcher:
            watcher.logged(row)
        state.save(progress, job.network, optimizer)


def initialise_gates(network: SkipNet, recipe: Recipe) -> None:
    if recipe.gate_bias_init:
        set_gate_bias(network, recipe.gate_bias_init)
    if recipe.gate_logit_scale != 1:
        scale_gate_logits(network, recipe.gate_logit_scale)


def choose_learners(network: SkipNet, recipe: Recipe) -> None:
    """Let a stage change all weights, or those of the gates alone."""
    network.requires_grad_(not recipe.freeze_backbone)
    for gates in (network.gates, network.controller):
        if gates is not None:
            gates.requires_grad_(True)


def make_optimizer(network: SkipNet, recipe: Recipe) -> torch.optim.SGD:
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learning if parameter.ndim > 1]
    vectors = [parameter for parameter in learning if parameter.ndim <= 1]
    fused = True if matrices[0].is_cuda else None
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": recipe.weight_decay if recipe.decay_all else 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=recipe.nesterov, fused=fused)


def log_epoch(job: Job, recipe: Recipe, progress: Progress, epoch: int) -> dict[str, Any]:
    """Append the epoch's figures, held-out ones beside them, to ``log.jsonl``, begin new sums; return the figures."""
    assert progress.sums is not None
    loss, correct, computation = (progress.sums / progress.images).tolist()
    remedy = f"another --seed, or with a recipe of a lower rate than {recipe.rate}, in another --output"
    require_finite(loss, f"{recipe.stage}, epoch {epoch + 1}", remedy)
    held_out = job.validate(job.network)
    images = progress.images / recipe.routes
    row = {
        "stage": recipe.stage,
        "epoch": epoch + 1,
        "step": progress.step,
        "loss": round(loss, 4),
        "train_accuracy": round(correct, 4),
        "train_computation": round(computation, 4),
        "accuracy": round(held_out.accuracy, 4),
        "computation_percentage": round(held_out.computation_percentage, 2),
        "skip_rate": [round(1 - rate, 3) for rate in held_out.execution_rate],
        "images_per_second": round(images / progress.seconds, 1) if progress.seconds else None,
        "seconds": round(progress.seconds, 3),
        "cpu_seconds": round(progress.cpu_seconds, 3),
    }
    log_row(job.folder / LOG, row, progress)
    return row


def require_finite(loss: float, of: str, remedy: str) -> None:
    """Raise UserError where a loss is infinite or NaN: train again, with what ``remedy`` says."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of {of}, is {loss}: train again with {remedy}")


def write_stage_checkpoint(job: Job, recipe: Recipe) -> None:
    done = job.recipes[: job.recipes.index(recipe) + 1]
    kind = {"teacher": job.teacher_name}
    stages = [*job.earlier]
    for each in done:
        stages.append(stage_summary(each) | {"seed": job.seed} | (kind if each.distillation_weight else {}))
    config = Config(
        architecture=job.architecture.name,
        labels=job.labels,
        input=job.spec,
        training={
            **job.about,
            "seed": job.seed,
            "stages": stages,
        },
        code=code_version(),
    )
    write_checkpoint(job.folder / recipe.stage, job.network, config)


def stage_summary(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's hyper-parameters as they are written into a checkpoint's config."""
    return {key: value for key, value in asdict(recipe).items() if value is not None}
