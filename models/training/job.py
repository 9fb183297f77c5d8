"""Build a training job from the user's options: network, data and recipes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from models.architectures import Architecture, find_architecture
from models.checkpoint import Checkpoint, read_checkpoint, read_config
from models.data.augmentation import crop_centre, normalise
from models.data.batches import Batches, MemoryBatches, StreamedBatches
from models.data.datasets import DatasetInfo, Statistics, find_dataset
from models.data.source import Source, describe, read_source
from models.data.validation_split import VALIDATION_IMAGES, split_positions
from models.errors import UserError
from models.evaluation.metrics import BATCH, Metrics, evaluate_network, prepared_batches
from models.importing.public_checkpoint import IMPORTED
from models.network import GateKind, SkipNet
from models.persistence.training_record import TrainedStage, TrainingRecord
from models.preprocessing import InputSpec
from models.training.distillation.location import is_network, teacher_name
from models.training.distillation.logits import read_teacher_logits
from models.training.distillation.network import read_teacher
from models.training.growth import grow
from models.training.hardware import gains_by_compiling, multiplies_bfloat16, prepare_process
from models.training.recipes import Recipe, Stage, find_recipe
from models.training.types import Job

IN_MEMORY = 4 << 30
"""Bytes; a larger data set is decoded during training."""


@dataclass(frozen=True)
class JobOptions:
    """The user's options; see `skipnet train --help`. ``changes`` replace values of the recipe."""

    arch: str
    dataset: str
    output: Path
    data: Path | None = None
    stages: tuple[Stage, ...] | None = None
    recipe: str = "paper"
    changes: Mapping[str, Any] = field(default_factory=dict)
    init: Path | None = None
    teacher: Path | None = None
    epochs: int | None = None
    batch: int | None = None
    seed: int = 0
    held_out: int = VALIDATION_IMAGES
    limit: int | None = None
    skip_damaged: bool = False
    size: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    workers: int = 2


def make_job(options: JobOptions) -> Job:
    """Build the job that the options describe; raises UserError for options that don't make one."""
    prepare_process(options.seed)
    device = torch.device(choose_device(options.device))
    architecture, dataset = (
        find_architecture(options.arch),
        with_start_normalisation(find_dataset(options.dataset), options),
    )
    stages = choose_stages(architecture, options)
    recipes = [override(find_recipe(options.recipe, stage), options) for stage in stages]
    if architecture.gates is None and any(recipe.freeze_backbone for recipe in recipes):
        raise UserError(f"{architecture.name} has no gates that could learn alone: leave out freeze_backbone")
    size = options.size or (dataset.size if dataset.uniform else architecture.image_size)
    check_size(architecture, size)
    source = read_source(dataset, "train", options.data)
    spec = input_spec(dataset, size)
    train_positions, validation_positions = split_positions(source, options.held_out, options.limit)
    train, validation = source.select(train_positions), source.select(validation_positions)
    if options.skip_damaged:
        train, validation = (part.without_damaged(spec.resize) for part in (train, validation))
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
        validate=lambda trained: validate(trained, validation, spec, device),
        device=device,
        seed=options.seed,
        folder=options.output,
        compile=options.compile == "on"
        or (options.compile == "auto" and gains_by_compiling(architecture, device, mixed)),
        mixed=mixed,
        teacher=teacher,
        teacher_name=teacher_name(options.teacher)
        if teacher is not None and is_teacher_file(options.teacher)
        else "checkpoint",
        origins={name: str(path) for name, path in (("init", options.init), ("teacher", options.teacher)) if path},
        about=TrainingRecord(
            dataset=dataset.name,
            train_images=len(train),
            validation_images=options.held_out,
            precision="bfloat16" if mixed else "float32",
        ),
        earlier=earlier,
        data=describe(train, validation),
    )


def with_start_normalisation(dataset: DatasetInfo, options: JobOptions) -> DatasetInfo:
    """Return the data set with the mean and deviation of the checkpoint to start from."""
    if options.init is None:
        return dataset
    known = read_config(options.init).input
    return replace(dataset, mean=known.mean, std=known.std)


def choose_stages(architecture: Architecture, options: JobOptions) -> tuple[Stage, ...]:
    if options.stages is None:
        if architecture.gates is None:
            return ("plain",)
        return ("hrl",) if options.init and gates_of(options.init) is not None else ("sp", "hrl")
    if ("plain" in options.stages) != (architecture.gates is None):
        raise UserError(
            f"{architecture.name} has {'no gates: its only stage is plain' if architecture.gates is None else 'gates:'}"
            f"{'' if architecture.gates is None else ' its stages are sp and hrl'}"
        )
    return options.stages


def gates_of(folder: Path) -> GateKind | None:
    """Return the gates of a checkpoint's architecture; raises CheckpointError or UnknownArchitecture."""
    return find_architecture(read_config(folder).architecture).gates


def override(recipe: Recipe, options: JobOptions) -> Recipe:
    """Return the recipe with the user's epochs, batch size and changes."""
    recipe = replace(recipe, **options.changes)
    if options.epochs is not None:
        recipe = replace(recipe, epochs=options.epochs, iterations=None)
    if options.batch is not None:
        recipe = replace(recipe, batch=options.batch)
    return recipe


def start_network(
    architecture: Architecture, classes: list[str], options: JobOptions
) -> tuple[SkipNet, list[TrainedStage]]:
    """Return the network to train and the records of the stages before.

    The network is fresh, or that of the checkpoint to start from. A dense one can get gates or grow (`grow`), and a
    routed one can lose its gates. Raises UserError where the checkpoint was trained on images that are now validation
    images.
    """
    if options.init is None:
        return architecture.build(len(classes)), []
    checkpoint = read_checkpoint(options.init)
    found = find_architecture(checkpoint.config.architecture)
    same_gates = found.gates == architecture.gates
    grows = found.gates is None and found.grows_into(architecture)
    if not grows and (
        found.backbone != architecture.backbone or not (same_gates or None in (found.gates, architecture.gates))
    ):
        raise UserError(f"{options.init} is a {found.name}, not a {architecture.name}; name its own --arch")
    check_labels(checkpoint, options.init, classes, options)
    check_validation_images(checkpoint, options.init, options)
    stages = earlier_stages(checkpoint)
    if same_gates and not grows:
        return checkpoint.network, stages
    if grows:
        grown = grow(checkpoint.network, found, architecture)
        return grown, [stage.with_architecture(found.name) for stage in stages]
    network = architecture.build(len(classes))
    # Only the gates' weights can be missing: new gates keep their fresh weights.
    network.load_state_dict(checkpoint.network.state_dict(), strict=False)
    # Record which network the stages with gates trained; a plain stage never has any.
    return network, [stage if stage.stage == "plain" else stage.with_architecture(found.name) for stage in stages]


def earlier_stages(checkpoint: Checkpoint) -> list[TrainedStage]:
    """Return a checkpoint's origin, if it was imported, and the records of its stages."""
    training = checkpoint.config.training
    origin = [TrainedStage(stage=IMPORTED, name=training.imported_from)] if training.imported_from else []
    return [*origin, *training.stages]


def find_teacher(
    recipes: list[Recipe], source: Source, positions: Sequence[int], options: JobOptions
) -> nn.Module | Tensor | None:
    """Return the recipes' teacher, if one needs it: that of --teacher, or else the dense network of --init.

    It is a network, or the logits that a file holds for the images at ``positions`` of the source.
    """
    if not any(recipe.distillation_weight for recipe in recipes):
        return None
    if is_teacher_file(options.teacher):
        if is_network(options.teacher):
            known = find_dataset(source.dataset.name)
            check_normalisation(options.teacher, known.mean, known.std, source.dataset)
            return read_teacher(options.teacher, source.dataset.name, len(source.classes))
        logits = read_teacher_logits(options.teacher, source.dataset.name, len(source), len(source.classes))
        return logits[list(positions)]
    folder = options.teacher or options.init
    if folder is None:
        raise UserError(f"recipe {options.recipe} needs a teacher: name a dense network's checkpoint with --teacher")
    checkpoint = read_checkpoint(folder)
    if checkpoint.network.gate_kind is not None:
        raise UserError(f"{folder} has gates; recipe {options.recipe} needs a dense teacher: name one with --teacher")
    check_labels(checkpoint, folder, source.classes, options)
    check_validation_images(checkpoint, folder, options)
    check_normalisation(folder, checkpoint.config.input.mean, checkpoint.config.input.std, source.dataset)
    return checkpoint.network.requires_grad_(False)


def is_teacher_file(teacher: Path | None) -> TypeGuard[Path]:
    """Whether a teacher is a file of `skipnet teach`; a checkpoint is a folder."""
    return teacher is not None and teacher.suffix == ".safetensors"


def check_labels(checkpoint: Checkpoint, folder: Path, classes: list[str], options: JobOptions) -> None:
    if checkpoint.config.labels != classes:
        raise UserError(f"{folder} has other labels than {options.dataset}; train it from the start")


def check_validation_images(checkpoint: Checkpoint, folder: Path, options: JobOptions) -> None:
    """Raise UserError where the checkpoint was trained on images that are now validation images."""
    training = checkpoint.config.training
    before = training.validation_images
    if training.dataset == options.dataset and before is not None and before < options.held_out:
        raise UserError(
            f"{folder} was validated on {before} images and trained on others of the {options.held_out} validation "
            f"images: set --held-out {before}"
        )


def check_normalisation(teacher: Path, mean: Statistics, std: Statistics, dataset: DatasetInfo) -> None:
    """Raise UserError where a teacher was trained on images normalised by another mean or deviation."""
    if not np.allclose((mean, std), (dataset.mean, dataset.std), rtol=0, atol=1e-4):
        raise UserError(
            f"{teacher} expects images with mean {mean} and deviation {std}, but --init has {dataset.mean} and "
            f"{dataset.std}: use the teacher's teacher_logits.safetensors, or another --init"
        )


def check_size(architecture: Architecture, size: int) -> None:
    """Raise UserError where a block's map is one pixel: batch norm can't take the variance of a single value."""
    shrinks = 4 if architecture.stem == "cifar" else 32
    if architecture.gates is not None and size <= shrinks:
        raise UserError(
            f"images of {size} pixels are too small for {architecture.name}: its last maps would be one pixel; "
            f"set a --size above {shrinks}"
        )


def input_spec(dataset: DatasetInfo, size: int) -> InputSpec:
    # ImageNet's networks are evaluated on the centre 7/8 of an image (224 of 256 pixels).
    resize = size if dataset.uniform else round(size * 8 / 7)
    return InputSpec(height=size, width=size, resize=resize, mean=dataset.mean, std=dataset.std)


def make_batches(train: Source, spec: InputSpec, recipe: Recipe, options: JobOptions, device: torch.device) -> Batches:
    if recipe.batch > len(train):
        raise UserError(f"{len(train)} training images don't fill a batch of {recipe.batch}; set --batch")
    if not fits_memory(train, spec):
        return StreamedBatches(train, spec, recipe.batch, options.seed, device, options.workers)
    images, labels = pixels(train, spec.resize)
    return MemoryBatches(images, labels, train.dataset, spec.height, recipe.batch, options.seed, device)


# The training and the validation images of one run; the next run in the process may split them differently.
@lru_cache(maxsize=2)
def pixels(source: Source, side: int) -> tuple[Tensor, Tensor]:
    return source.in_memory(side)


def validate(network: SkipNet, validation: Source, spec: InputSpec, device: torch.device) -> Metrics:
    return evaluate_network(network, evaluation_batches(validation, spec, device))


def evaluation_batches(source: Source, spec: InputSpec, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised images and labels, in order and without augmentation."""
    if not fits_memory(source, spec):
        for batch, truth in prepared_batches(source, spec):
            yield batch.to(device), truth
        return
    stored, labels = pixels(source, spec.resize)
    for start in range(0, len(stored), BATCH):
        batch = crop_centre(stored[start : start + BATCH].to(device), spec.height)
        yield normalise(batch, spec.mean, spec.std), labels[start : start + BATCH]


def fits_memory(source: Source, spec: InputSpec) -> bool:
    """Whether the resized images, as uint8, fit into memory."""
    return len(source) * 3 * spec.resize**2 <= IN_MEMORY


def choose_device(device: str) -> str:
    """Return the device to train on; raises UserError where a GPU is asked for and torch finds none."""
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise UserError("torch finds no GPU here: leave out --device cuda")
    return ("cuda" if found else "cpu") if device == "auto" else device
