"""Build a training job from the user's options: network, data and recipes."""

from dataclasses import replace

import torch

from models.architectures import Architecture, find_architecture
from models.data.datasets import find_dataset
from models.data.source import describe, read_source
from models.errors import UserError
from models.persistence.training_record import TrainingRecord
from models.training.distillation.location import teacher_name
from models.training.distributed.group import share
from models.training.recipes import Recipe, Stage, find_recipe
from models.training.setup.data import (
    check_shares,
    check_size,
    choose_images,
    choose_input,
    make_batches,
    share_of_validation,
    validate,
    with_normalisation,
)
from models.training.setup.hardware import choose_device, gains_by_compiling, multiplies_bfloat16, prepare_process
from models.training.setup.network import gates_of, start_network
from models.training.setup.options import STAGES, JobOptions
from models.training.setup.teacher import find_teacher, is_teacher_file
from models.training.types import Job


def make_job(options: JobOptions) -> Job:
    """Build the job that the options describe.

    Raises UserError for options that do not fit each other.
    """
    prepare_process(options.seed)
    device = torch.device(choose_device(options.device))
    architecture, dataset = (
        find_architecture(options.arch),
        with_normalisation(find_dataset(options.dataset), options),
    )
    stages = choose_stages(architecture, options)
    recipes = [override(find_recipe(options.recipe, stage), options) for stage in stages]
    if architecture.gates is None and any(recipe.freeze_backbone for recipe in recipes):
        raise UserError(f"{architecture.name} has no gates to train alone: leave out freeze_backbone")
    spec = choose_input(architecture, dataset, options)
    check_size(architecture, spec.height)
    source = read_source(dataset, "train", options.data)
    train, validation, split = choose_images(source, options)
    if options.skip_damaged:
        train, validation = (part.without_damaged(spec.resize) for part in (train, validation))
    check_shares(recipes, validation, share().size)
    own_validation = share_of_validation(validation)
    network, earlier = start_network(architecture, source.classes, options)
    teacher = find_teacher(recipes, source, train.positions, options)
    mixed = options.precision == "bfloat16" or (options.precision == "auto" and multiplies_bfloat16(device))
    return Job(
        architecture=architecture,
        network=network,
        labels=source.classes,
        spec=spec,
        recipes=recipes,
        batches=lambda recipe: make_batches(train, spec, recipe, options, device),
        validate=lambda trained: validate(trained, own_validation, spec, device),
        device=device,
        seed=options.seed,
        folder=options.folder,
        compile=compiles(options, architecture, device, mixed),
        mixed=mixed,
        teacher=teacher,
        teacher_name=teacher_name(options.teacher)
        if teacher is not None and is_teacher_file(options.teacher)
        else "checkpoint",
        origins={name: str(path) for name, path in (("init", options.init), ("teacher", options.teacher)) if path},
        about=TrainingRecord(
            dataset=dataset.name,
            data=None if options.data is None else str(options.data.resolve()),
            train_images=len(train),
            validation_images=len(validation) if options.splits_folder else options.held_out,
            precision="bfloat16" if mixed else "float32",
            **split,
        ),
        earlier=earlier,
        data=describe(train, validation),
    )


def compiles(options: JobOptions, architecture: Architecture, device: torch.device, mixed: bool) -> bool:
    """Return whether the supervised step is compiled.

    Raises UserError if the option is on and the run has several processes.
    """
    if share().size > 1:
        if options.compile == "on":
            raise UserError("several processes cannot compile the step: leave out --compile on")
        return False
    return options.compile == "on" or (options.compile == "auto" and gains_by_compiling(architecture, device, mixed))


def choose_stages(architecture: Architecture, options: JobOptions) -> tuple[Stage, ...]:
    if options.stages is None:
        if architecture.gates is None:
            return ("plain",)
        return ("hrl",) if options.init and gates_of(options.init) is not None else ("sp", "hrl")
    if ("plain" in STAGES[options.stages]) != (architecture.gates is None):
        raise UserError(
            f"{architecture.name} has {'no gates: its only stage is plain' if architecture.gates is None else 'gates:'}"
            f"{'' if architecture.gates is None else ' its stages are sp and hrl'}"
        )
    return STAGES[options.stages]


def override(recipe: Recipe, options: JobOptions) -> Recipe:
    """Return the recipe with the user's epochs, batch size and changes."""
    recipe = replace(recipe, **options.changes)
    if options.epochs is not None:
        recipe = replace(recipe, epochs=options.epochs, iterations=None)
    if options.batch is not None:
        recipe = replace(recipe, batch=options.batch)
    return recipe
