"""Run the stages of a training: log epochs, save states and write checkpoints.

    skipnet train --arch cifar10_rnn_gate_38 --dataset cifar10                      SP, then HRL, from the hub
    skipnet train --arch cifar10_rnn_gate_38 --dataset cifar10 --data FOLDER \\
        --recipe short --epochs 1 --limit 2560 --output runs/try                    a minute on a CPU
"""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.checkpoint import Config, code_version, write_checkpoint
from models.errors import UserError
from models.training.distributed.batch_norm import synchronise_batch_norm
from models.training.distributed.gradients import copy_from_first
from models.training.distributed.group import agree, is_first, share, wait_for_all
from models.training.interruption import StopRequest, stop_at, stop_on_signals
from models.training.optimizer import choose_trainable, initialise_gates, make_optimizer
from models.training.recipes import Recipe
from models.training.schedule import annealing_progress, learning_rate
from models.training.stages.batch_norm import freeze_statistics
from models.training.stages.reinforce import re_estimate_statistics
from models.training.state import LOG, Progress, StateFile, Stopwatch, append_record, cut_log
from models.training.step import make_step
from models.training.types import Job, Show, Watcher, stage_record

RE_ESTIMATED = 100
"""Batches from which batch norm's statistics are estimated again."""


def train(
    job: Job,
    *,
    resume: bool,
    save_every: float,
    show: Show,
    watcher: Watcher | None = None,
) -> Path:
    """Run the job's stages and return the folder of the last stage's checkpoint.

    ``show`` wraps the steps of an epoch, for a progress bar. Raises UserError if ``resume`` finds a damaged state or
    the state of another run, if the folder holds an unfinished run and ``resume`` is false, and if the loss is not
    finite. Raises TrainingStopped after SIGINT or SIGTERM, and ProcessLost if another process of the run has ended.
    """
    state = StateFile(job.folder, job.identity, save_every)
    progress, optimizer_state = Progress(), None
    if is_first():
        job.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            state.require_finished()
            # If this run is killed before its first save, --resume must not continue the earlier run.
            state.path.unlink(missing_ok=True)
    if resume:
        progress, optimizer_state = state.load(job.network)
    if is_first():
        cut_log(job.folder / LOG, progress)
    for network in (job.network, job.teacher):
        if isinstance(network, nn.Module):
            network.to(job.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    copy_from_first(job.network)
    synchronise_batch_norm(job.network)
    with stop_on_signals() as stop:
        for number in range(progress.stage, len(job.recipes)):
            run_stage(job, job.recipes[number], progress, optimizer_state, state, show, watcher, stop)
            if is_first():
                write_stage_checkpoint(job, job.recipes[number])
            progress, optimizer_state = Progress(stage=number + 1, logged=progress.logged), None
            state.save(progress, job.network, None)
        stop.check(state.path)
    return job.folder / job.recipes[-1].stage


def run_stage(
    job: Job,
    recipe: Recipe,
    progress: Progress,
    optimizer_state: dict[str, Any] | None,
    state: StateFile,
    show: Show,
    watcher: Watcher | None,
    stop: StopRequest,
) -> None:
    """Run a stage from ``progress`` to its end.

    Raises TrainingStopped as `train` does.
    """
    batches = job.batches(recipe)
    total = recipe.steps(batches.steps_per_epoch)
    choose_trainable(job.network, recipe)
    optimizer = make_optimizer(job.network, recipe)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    else:
        initialise_gates(job.network, recipe)
    take_step = make_step(job, recipe, batches)
    while progress.step < total:
        epoch, start = divmod(progress.step, batches.steps_per_epoch)
        end = min(batches.steps_per_epoch, total - epoch * batches.steps_per_epoch)
        job.network.train()
        if recipe.freeze_backbone or (recipe.stage == "hrl" and recipe.statistics != "executed"):
            freeze_statistics(job.network)
        steps = zip(show(iter(range(start, end))), batches.epoch(epoch, start), strict=False)
        watch = Stopwatch()
        for within, (images, labels) in steps:
            rate = learning_rate(recipe, progress.step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            annealing = annealing_progress(recipe, progress.step, total)
            step = take_step(images, labels, annealing, epoch, within)
            optimizer.step()
            seconds, cpu_seconds = watch.lap()
            cpu_seconds, signalled = agree(cpu_seconds, stop.number)
            images_done = len(labels) * share().size
            progress.add(step, images_done * recipe.routes, seconds, cpu_seconds)
            if watcher:
                watcher.stepped(recipe, progress.step, total, images_done, rate, progress)
            # After the epoch's last step, the state is saved below, once the epoch is in the log.
            if (state.due() or signalled is not None) and within + 1 < end:
                save_and_stop(state, progress, job.network, optimizer, signalled)
        re_estimates = recipe.stage == "hrl" and recipe.statistics == "re-estimated" and not recipe.freeze_backbone
        if progress.step == total and re_estimates:
            re_estimate_statistics(job.network, (images for images, _ in islice(batches.epoch(0), RE_ESTIMATED)))
        record = log_epoch(job, recipe, progress, epoch)
        if watcher:
            watcher.logged(record)
        _, signalled = agree(0.0, stop.number)
        save_and_stop(state, progress, job.network, optimizer, signalled if progress.step < total else None)


def save_and_stop(
    state: StateFile, progress: Progress, network: nn.Module, optimizer: torch.optim.Optimizer, number: int | None
) -> None:
    """Save the state.

    Raises TrainingStopped if a signal with this number has arrived in any process.
    """
    state.save(progress, network, optimizer)
    if number is not None:
        # torchrun ends all processes when one of them ends.
        wait_for_all()
    stop_at(state.path, number)


def log_epoch(job: Job, recipe: Recipe, progress: Progress, epoch: int) -> dict[str, Any]:
    """Measure the network on the validation images, append the epoch's figures to ``log.jsonl``, and return them."""
    assert progress.sums is not None
    loss, correct, computation = (progress.sums / progress.images).tolist()
    remedy = f"another --seed, or with a recipe of a lower rate than {recipe.rate}, in another --output"
    require_finite(loss, f"{recipe.stage}, epoch {epoch + 1}", remedy)
    validation = job.validate(job.network)
    images = progress.images / recipe.routes
    record = {
        "stage": recipe.stage,
        "epoch": epoch + 1,
        "step": progress.step,
        "loss": round(loss, 4),
        "train_accuracy": round(correct, 4),
        "train_computation": round(computation, 4),
        "accuracy": round(validation.accuracy, 4),
        "computation_percentage": round(validation.computation_percentage, 2),
        "skip_rate": [round(1 - rate, 3) for rate in validation.execution_rate],
        "images_per_second": round(images / progress.seconds, 1) if progress.seconds else None,
        "seconds": round(progress.seconds, 3),
        "cpu_seconds": round(progress.cpu_seconds, 3),
    }
    append_record(job.folder / LOG, record, progress)
    return record


def require_finite(loss: float, of: str, remedy: str) -> None:
    """Raise UserError if a loss is infinite or NaN. ``remedy`` completes "train again with"."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of {of}, is {loss}: train again with {remedy}")


def write_stage_checkpoint(job: Job, recipe: Recipe) -> None:
    done = job.recipes[: job.recipes.index(recipe) + 1]
    stages = [*job.earlier]
    for each in done:
        teacher = {"teacher": job.teacher_name} if each.distillation_weight else {}
        stages.append(stage_record(each).model_copy(update={"seed": job.seed} | teacher))
    config = Config(
        architecture=job.architecture.name,
        labels=job.labels,
        input=job.spec,
        training=job.about.model_copy(update={"seed": job.seed, "stages": tuple(stages)}),
        code=code_version(),
    )
    write_checkpoint(job.folder / recipe.stage, job.network, config)
