"""Reproducing the paper's rows: train one, or go on with it, measure it, and leave a results file."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import CalibrationPoint, Evaluation, code_version, read_checkpoint, read_config, write_config
from models.data.datasets import find_dataset
from models.data.source import read_source
from models.data.validation_split import split_positions, validation_source
from models.engines import load_engine
from models.evaluation.calibration import calibrate
from models.evaluation.metrics import measure
from models.experiments.results import Result, ResultError, read_result, stage_hours, write_result
from models.experiments.row import Row, Schedule
from models.experiments.rows import find_row, find_runs
from models.machine import describe_machine
from models.training.distillation.location import parse_teacher, teacher_file, teacher_folder
from models.training.distillation.training import train_teacher
from models.training.job import JobError, JobOptions, choose_device, make_job, override
from models.training.loop import stage_summary, train
from models.training.recipes import find_recipe
from models.training.soup import SOUP, make_soup
from models.training.state import LOG, STATE


@dataclass(frozen=True)
class Reproduction:
    """Where rows are trained, and how. ``shared`` are the options of all of them, ``output`` the folder of the runs;
    ``depth`` is the networks' number of layers; ``command`` is the line that asks for them, but for the row and the
    seed.

    ``results`` is the folder of results files. ``choose`` leaves the test images alone. ``start`` is a checkpoint
    that rows start from in place of another row's.
    """

    shared: JobOptions
    depth: int
    schedule: Schedule
    results: Path
    choose: bool
    command: str
    start: Path | None = None

    def runs(self, names: Iterable[str], seeds: Sequence[int] | None) -> list[tuple[Row, int]]:
        """Return rows and seeds in the order to run them; raises UnknownRow."""
        return find_runs(names, self.schedule, seeds, starts=self.start is None)

    def name(self, row: str, seed: int, depth: int | None = None) -> str:
        """Return a run's name, which is its folder's and its results file's; ``depth`` where it is another's."""
        network = f"{self.shared.dataset}_{depth or self.depth}"
        return f"{network}/{self.schedule}{'-choose' if self.choose else ''}/{row}-{seed}"

    def options(self, row: Row, seed: int) -> JobOptions:
        """Return the options of a row's training."""
        return replace(
            self.shared,
            arch=f"{self.shared.dataset}_{row.routing}_{self.depth}",
            stages=(row.stage,),
            recipe=row.recipe,
            changes=row.changes,
            init=self.starting_point(row, seed),
            teacher=self.teacher(row),
            seed=seed,
            output=self.shared.output / self.name(row.name, seed),
        )

    def starting_point(self, row: Row, seed: int) -> Path | None:
        """Return the checkpoint that a row starts from, if it does not start afresh."""
        if row.start is None or self.start is not None:
            return self.start if row.start else None
        return self.checkpoint(row.start, row.seed_of_start(seed), row.start_depth)

    def start_name(self, row: Row) -> str | None:
        """Return what a results file calls the checkpoint that the row starts from."""
        if row.averaged:
            return " + ".join(row.parts)
        if row.start is None or self.start is not None:
            return str(self.start) if row.start else None
        return row.start if row.start_depth is None else f"{row.start} of {row.start_depth} layers"

    def check_start(self, row: Row, options: JobOptions) -> None:
        """Raise JobError where the network that the row grows from is as deep, or is not there."""
        if row.start_depth is None or self.start is not None or options.init is None:
            return
        if self.depth <= row.start_depth:
            raise JobError(f"{row.name} grows from {row.start_depth} layers: ask for more with --depth, say 110")
        if not options.init.exists():
            raise JobError(
                f"{row.name} grows from {options.init}, which is not there: run the same command with "
                f"--depth {row.start_depth} --rows {row.start} first, or name another with --start"
            )

    def teacher(self, row: Row) -> Path | None:
        """Return what a row learns from, if that is not what it starts from."""
        if row.teacher is None:
            return None
        if wide := parse_teacher(row.teacher):
            network, file = wide
            return teacher_file(teacher_folder(self.shared.output, self.shared.dataset, network), file)
        return self.checkpoint(row.teacher, 0)

    def checkpoint(self, row: str, seed: int, depth: int | None = None) -> Path:
        """Return the folder of the checkpoint that a row's run leaves."""
        return self.shared.output / self.name(row, seed, depth) / find_row(row, self.schedule).stage


def reproduce(
    plan: Reproduction,
    row: Row,
    seed: int,
    *,
    save_every: float,
    show: Callable[[Iterator[int]], Iterator[int]],
) -> Result:
    """Train a row, or go on with its training, and return what it gave; a finished row is read from its file.

    The rows that it starts from must be finished. Raises ResultError where the results file is of a run with other
    options, and what `make_job` and `train` raise.
    """
    options = plan.options(row, seed)
    file = plan.results / f"{plan.name(row.name, seed)}.json"
    if file.exists():
        return finished(file, row, options, plan.start_name(row))
    plan.check_start(row, options)
    folder = plan.checkpoint(row.name, seed)
    if row.averaged:
        start = row.seed_of_start(seed)
        make_soup([plan.checkpoint(name, start) for name in row.parts], folder)
        hours, cpu_hours = 0.0, 0.0
    else:
        train_row(row, options, save_every, show)
        hours, cpu_hours = stage_hours(options.output / LOG, row.stage)
    held_out, test = measure_all(folder, row, options, plan.choose)
    about = read_config(folder).training
    result = Result(
        row=row.name,
        title=row.title,
        schedule=plan.schedule,
        seed=seed,
        dataset=options.dataset,
        architecture=options.arch,
        recipe=asked_recipe(row, options),
        start=plan.start_name(row),
        train_images=about["train_images"],
        held_out_images=about["validation_images"],
        precision=about["precision"],
        hours=round(hours, 6),
        cpu_hours=round(cpu_hours, 6),
        machine=describe_machine(),
        command=f"{plan.command} --rows {row.name} --seeds {seed}",
        code=code_version(),
        held_out=held_out,
        test=test,
    )
    write_result(file, result)
    return result


def train_row(row: Row, options: JobOptions, save_every: float, show: Callable[[Iterator[int]], Iterator[int]]) -> None:
    """Train a row, or go on with its training; its teacher first, where that is not there, or is not done.

    Raises StateError where the teacher was trained with other options.
    """
    wide, teacher = parse_teacher(row.teacher or ""), options.teacher
    if wide and teacher is not None and ((teacher.parent / STATE).exists() or not teacher.exists()):
        train_row_teacher(wide[0], options, teacher.parent, save_every, show)
    job = make_job(options)
    # Of one function torch compiles eight versions at most, and each row's recipe asks for one of its own.
    torch.compiler.reset()
    train(job, resume=True, save_every=save_every, show=show)


def asked_recipe(row: Row, options: JobOptions) -> dict[str, Any]:
    """Return what a results file says of the recipe; a mean has none."""
    if row.averaged:
        return {"name": SOUP, "epochs": 0}
    return as_json(stage_summary(override(find_recipe(options.recipe, row.stage), options)))


def train_row_teacher(
    network: str, options: JobOptions, folder: Path, save_every: float, show: Callable[[Iterator[int]], Iterator[int]]
) -> None:
    source = read_source(find_dataset(options.dataset), "train", options.data)
    train_teacher(
        source,
        folder,
        network=network,
        epochs=options.epochs,
        held_out=options.held_out,
        limit=options.limit,
        seed=0,
        device=torch.device(choose_device(options.device)),
        save_every=save_every,
        show=show,
    )


def finished(file: Path, row: Row, options: JobOptions, start: str | None) -> Result:
    """Return the result of a run that is over; raises ResultError where it was one with other options.

    What it started and learned from may be gone.
    """
    result = read_result(file)
    source = read_source(find_dataset(options.dataset), "train", options.data)
    train, _ = split_positions(source, options.held_out, options.limit)
    beside = {"train_images": len(train), "held_out_images": options.held_out, "start": start}
    asked = asked_recipe(row, options) | beside
    got = result.recipe | {key: getattr(result, key) for key in beside}
    differing = [key for key in asked | got if asked.get(key) != got.get(key)]
    if differing:
        raise ResultError(
            f"{file} is of a run with {', '.join(f'{key}={got.get(key)!r}' for key in differing)}; "
            "run it with the same options, choose another --output, or delete the file and its run"
        )
    return result


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as they come back from a JSON file, tuples as lists."""
    same: dict[str, Any] = json.loads(json.dumps(values))
    return same


def measure_all(folder: Path, row: Row, options: JobOptions, choose: bool) -> tuple[Evaluation, Evaluation | None]:
    """Measure a trained checkpoint on held-out images and, unless ``choose``, on the test images.

    The execute threshold, the test's figures and the curve of the compute dial on held-out images go into its
    ``config.json``.
    """
    checkpoint = read_checkpoint(folder)
    dataset = find_dataset(options.dataset)
    kept_apart = validation_source(read_source(dataset, "train", options.data), checkpoint.config.training)
    engine = load_engine(checkpoint, "auto", options.device)
    try:
        curve = calibrate(checkpoint, engine, kept_apart, row.at_most) if checkpoint.network.decision_count else []
        threshold = choose_threshold(curve, row.at_most, checkpoint.config.execute_threshold)
        held_out = measure(checkpoint, engine, kept_apart, "held_out", threshold)
        test = None
        if not choose:
            test = measure(checkpoint, engine, read_source(dataset, "test", options.data), "test", threshold)
    finally:
        engine.close()
    changes = {"execute_threshold": threshold, "evaluation": test, "calibration": curve}
    write_config(folder, checkpoint.config.model_copy(update=changes))
    return held_out, test


def choose_threshold(curve: list[CalibrationPoint], at_most: float | None, default: float) -> float:
    """Return the threshold of the best accuracy among those that compute at most so much, if there is one."""
    within = [point for point in curve if at_most is not None and point.computation_percentage <= at_most]
    return max(within, key=lambda point: point.accuracy).threshold if within else default
