"""Take one training step of each kind, alone or as one of the processes that torchrun starts.

torchrun --nproc-per-node 2 -m tests.models.training.distributed.steps FILE
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from models.architectures import Architecture
from models.data.batches import MemoryBatches
from models.data.datasets import DatasetInfo, find_dataset
from models.evaluation.metrics import evaluate_network
from models.network import GateKind
from models.persistence.training_record import TrainingRecord
from models.training.distributed.batch_norm import synchronise_batch_norm
from models.training.distributed.group import is_first, join_rows, process_group, share
from models.training.loop import train
from models.training.recipes import Recipe, find_recipe, points
from models.training.setup.data import input_spec
from models.training.stages.batch_norm import freeze_statistics
from models.training.stages.gate_readout import readouts
from models.training.stages.reinforce import re_estimate_statistics
from models.training.step import make_step
from models.training.types import Job

CPU = torch.device("cpu")
BATCH, IMAGES, CLASSES = 16, 32, 10
SP, HRL, PLAIN = find_recipe("multi_budget", "sp"), find_recipe("short", "hrl"), find_recipe("short", "plain")
TARGETS = points((1 / 4, 0.0, 1.0), (1 / 2, 0.5, 0.2), (1 / 4, 0.8, 0.1))
RARELY = -3.0
"""A gate's bias at which few images of a batch execute its block. Some processes have no such image."""

CASES: Mapping[str, tuple[GateKind | None, float, Recipe]] = {
    "plain": (None, 0.0, PLAIN),
    "sp": ("rnn", 0.0, replace(SP, operating_points=TARGETS, distillation_weight=0.0)),
    "sp, few executed": ("feedforward_2", RARELY, replace(SP, operating_points=TARGETS, distillation_weight=0.0)),
    "sp, all executed": ("rnn", 20.0, replace(SP, operating_points=points((1, 0.5, 0.4)), distillation_weight=0.0)),
    "distilled, mixed": ("rnn", 0.0, replace(SP, operating_points=TARGETS, mixup=0.75)),
    "by image": ("rnn", 0.0, replace(SP, operating_points=TARGETS, per_sample_spread=0.7)),
    "by image, no teacher": (
        "rnn",
        0.0,
        replace(SP, operating_points=TARGETS, per_sample_spread=0.7, distillation_weight=0.0),
    ),
    "gates alone": ("rnn", 0.0, replace(SP, operating_points=TARGETS, freeze_backbone=True, distillation_weight=0.0)),
    "soft": ("feedforward_1", 0.0, replace(SP, gates="soft", distillation_weight=0.0)),
    "hrl": ("rnn", 0.0, HRL),
    "hrl, one sample": ("rnn", 0.0, replace(HRL, samples=1, distillation_weight=0.5)),
    "hrl, frozen, few executed": ("rnn", RARELY, replace(HRL, statistics="frozen")),
    "hrl, executed": ("rnn", 0.0, replace(HRL, statistics="executed")),
    "hrl, few executed": ("rnn", RARELY, replace(HRL, statistics="executed")),
    "pure": ("rnn", 0.0, replace(HRL, samples=1, pure=True)),
}
DATASETS = {"crop_flip": find_dataset("cifar10"), "random_resized_crop": find_dataset("imagenet")}


def job_of(gates: GateKind | None, bias: float, recipe: Recipe) -> Job:
    """Return the job of a small network on noise, in float64, so that rounding is negligible."""
    torch.manual_seed(0)
    architecture = Architecture("small", "cifar", "basic", (3, 1, 1), CLASSES, gates)
    network = architecture.build()
    for readout in readouts(network):
        # The logits of fresh gates hardly depend on the image.
        nn.init.normal_(readout.weight, std=8.0)
        nn.init.constant_(readout.bias, bias)
    network.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Job(
        architecture=architecture,
        network=network,
        labels=[str(label) for label in range(CLASSES)],
        spec=input_spec(DATASETS["crop_flip"], 32),
        recipes=[recipe],
        batches=lambda _: batches_of(DATASETS["crop_flip"]),
        validate=lambda network: evaluate_network(network, []),
        device=CPU,
        seed=3,
        folder=Path(),
        compile=False,
        mixed=False,
        teacher=torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(2)),
        teacher_name="small-logits",
        origins={},
        about=TrainingRecord(),
        earlier=[],
    )


def batches_of(dataset: DatasetInfo) -> MemoryBatches:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=random, dtype=torch.uint8)
    return MemoryBatches(pixels, torch.arange(IMAGES) % CLASSES, dataset, 32, BATCH, 3, CPU, share())


def take_step(gates: GateKind | None, bias: float, recipe: Recipe) -> dict[str, Any]:
    """Return the results of a step: gradients (None if there is none), statistics, loss and sums."""
    job = job_of(gates, bias, recipe)
    network, batches = job.network.train(), job.batches(recipe)
    synchronise_batch_norm(network)
    if recipe.freeze_backbone:
        network.requires_grad_(False)
        for each in (network.gates, network.controller):
            assert each is not None
            each.requires_grad_(True)
    if recipe.freeze_backbone or (recipe.stage == "hrl" and recipe.statistics != "executed"):
        freeze_statistics(network)
    images, labels = next(batches.epoch(1, 1))
    step = make_step(job, recipe, batches)(images.double(), labels, 0.8, 1, 1)
    found: dict[str, Any] = {f"gradient of {name}": weight.grad for name, weight in network.named_parameters()}
    found |= {f"buffer {name}": buffer.clone() for name, buffer in network.named_buffers()}
    found |= {f"step {name}": value.detach() for name, value in step._asdict().items()}
    if recipe.stage == "hrl" and recipe.statistics == "re-estimated":
        re_estimate_statistics(network, (images.double() for images, _ in batches.epoch(0)))
        found |= {f"re-estimated {name}": buffer for name, buffer in network.named_buffers()}
    return found


def share_of_images() -> dict[str, Tensor]:
    """Return the augmented images of a step of each data set, all processes' rows one after the other."""
    found = {}
    for name, dataset in DATASETS.items():
        batches = batches_of(dataset)
        positions = join_rows(batches.chosen(1, 1).numpy())
        images = join_rows(next(batches.epoch(1, 1))[0].contiguous().numpy())
        found[name] = torch.from_numpy(images[positions.argsort()])
    return found


class DoubleBatches:
    """The batches of `batches_of`, in float64."""

    def __init__(self) -> None:
        self.batches = batches_of(DATASETS["crop_flip"])
        self.steps_per_epoch, self.chosen = self.batches.steps_per_epoch, self.batches.chosen

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images.double(), labels) for images, labels in self.batches.epoch(number, start))


def run_stages() -> dict[str, Tensor]:
    """Return the weights and statistics after ten steps: an SP stage, then an HRL stage."""
    recipes = [
        replace(SP, operating_points=TARGETS, distillation_weight=0.0, epochs=3, batch=BATCH, rate=0.02),
        replace(HRL, epochs=2, batch=BATCH),
    ]
    with TemporaryDirectory() as folder:
        job = replace(
            job_of("rnn", 0.0, recipes[0]),
            recipes=recipes,
            batches=lambda _: DoubleBatches(),
            validate=lambda network: evaluate_network(network, DoubleBatches().epoch(0), join_rows),
            folder=Path(folder),
        )
        train(job, resume=False, save_every=0, show=lambda steps: steps)
    return job.network.state_dict()


def take_all() -> dict[str, dict[str, Any]]:
    steps = {name: take_step(*case) for name, case in CASES.items()}
    return steps | {"images": share_of_images(), "trained": run_stages()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu"):
        taken = take_all()
        if is_first():
            torch.save(taken, sys.argv[1])
