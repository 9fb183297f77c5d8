"""Train, resume and measure the rows of `skipnet reproduce`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import code_version, read_config
from models.data.datasets import find_dataset
from models.data.source import read_source
from models.data.validation_split import split_positions
from models.errors import UserError
from models.experiments.measurement import measure_all
from models.experiments.plan import Plan
from models.experiments.results import Result, read_result, stage_hours, write_result
from models.experiments.row import Row
from models.experiments.subnetwork import extract_subnetwork
from models.machine import describe_machine
from models.training.distillation.location import parse_teacher
from models.training.distillation.training import train_teacher
from models.training.loop import train
from models.training.recipes import find_recipe
from models.training.setup.hardware import choose_device
from models.training.setup.job import make_job, override
from models.training.setup.options import JobOptions
from models.training.soup import SOUP, make_soup
from models.training.state import LOG, STATE
from models.training.types import stage_summary

Show = Callable[[Iterator[int]], Iterator[int]]
"""Wraps the steps of a training, for instance in a progress bar."""


def reproduce(plan: Plan, row: Row, seed: int, *, save_every: float, show: Show) -> Result:
    """Train a row or resume its training, and return its result.

    The result of a finished run is read from its results file.

    The row that it starts from must be finished. Raises UserError if the results file is that of a run with other
    options. Raises what `make_job` and `train` raise.
    """
    options = plan.options(row, seed)
    file = plan.results_file(row.name, seed)
    if file.exists():
        return read_finished(file, row, options, plan.start_name(row))
    plan.check_start(row, options)
    folder = plan.checkpoint(row.name, seed)
    if row.soup:
        start = row.seed_of_start(seed)
        make_soup([plan.checkpoint(name, start) for name in row.parts], folder)
        hours, cpu_hours = 0.0, 0.0
    else:
        train_row(row, options, save_every, show)
        hours, cpu_hours = stage_hours(options.folder / LOG, row.stage)
    validation, test = measure_all(folder, row, options, plan.choose)
    config = read_config(folder)
    training = config.training
    assert training.train_images is not None and training.validation_images is not None
    assert training.precision is not None
    result = Result(
        row=row.name,
        title=row.title,
        schedule=plan.schedule,
        seed=seed,
        dataset=options.dataset,
        architecture=config.architecture,
        recipe=recipe_values(row, options),
        start=plan.start_name(row),
        train_images=training.train_images,
        validation_images=training.validation_images,
        precision=training.precision,
        hours=round(hours, 6),
        cpu_hours=round(cpu_hours, 6),
        machine=describe_machine(),
        command=f"{plan.command} --rows {row.name} --seeds {seed}",
        code=code_version(),
        validation=validation,
        test=test,
    )
    write_result(file, result)
    return result


def train_row(row: Row, options: JobOptions, save_every: float, show: Show) -> None:
    """Train a row or resume its training. If its teacher is missing or unfinished, it is trained first.

    Raises UserError for a teacher that was trained with other options.
    """
    network, teacher = parse_teacher(row.teacher or ""), options.teacher
    if network and teacher is not None and ((teacher.parent / STATE).exists() or not teacher.exists()):
        train_row_teacher(network[0], options, teacher.parent, save_every, show)
    if row.kept_blocks is not None and options.init is not None:
        options = start_from_subnetwork(options, options.init, row.kept_blocks)
    job = make_job(options)
    # torch compiles at most eight versions of a function, and each row's recipe needs one.
    torch.compiler.reset()
    train(job, resume=True, save_every=save_every, show=show)


def start_from_subnetwork(options: JobOptions, init: Path, count: int) -> JobOptions:
    """Write the static subnetwork of ``init``, and return the options of a run that starts from it."""
    folder = options.folder / "subnetwork"
    return options.model_copy(update={"arch": extract_subnetwork(init, count, folder).name, "init": folder})


def train_row_teacher(network: str, options: JobOptions, folder: Path, save_every: float, show: Show) -> None:
    train_teacher(
        read_source(find_dataset(options.dataset), "train", options.data),
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


def recipe_values(row: Row, options: JobOptions) -> dict[str, Any]:
    """Return the hyper-parameters of a row as in a results file. A soup has none."""
    if row.soup:
        return {"name": SOUP, "epochs": 0}
    values = stage_summary(override(find_recipe(options.recipe, row.stage), options))
    # Tuples become lists, as in a file.
    as_read: dict[str, Any] = json.loads(json.dumps(values))
    return as_read


def read_finished(file: Path, row: Row, options: JobOptions, start: str | None) -> Result:
    """Return the result of a finished run.

    The checkpoints of its start and its teacher may no longer exist. Raises UserError if the run had other options.
    """
    result = read_result(file)
    source = read_source(find_dataset(options.dataset), "train", options.data)
    train_positions, _ = split_positions(source, options.held_out, options.limit)
    data = {"train_images": len(train_positions), "validation_images": options.held_out, "start": start}
    expected = recipe_values(row, options) | data
    found = result.recipe | {key: getattr(result, key) for key in data}
    differing = [key for key in expected | found if expected.get(key) != found.get(key)]
    if differing:
        raise UserError(
            f"{file} is of a run with {', '.join(f'{key}={found.get(key)!r}' for key in differing)}; "
            "use the same options, choose another --output, or delete the file and its run"
        )
    return result
