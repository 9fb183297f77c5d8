"""Fixtures of the training tests: a few synthetic images, and a job that trains on them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.architectures import find_architecture
from models.data.batches import MemoryBatches
from models.data.datasets import find_dataset
from models.evaluation.metrics import evaluate_network
from models.persistence.training_record import TrainingRecord
from models.training.recipes import Recipe, find_recipe
from models.training.setup.data import input_spec
from models.training.types import Job

IMAGES = 48
BATCH = 8
CIFAR10 = find_dataset("cifar10")


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=random, dtype=torch.uint8)
    return pixels, torch.arange(IMAGES) % 10


@pytest.fixture
def job(tmp_path: Path, images: tuple[Tensor, Tensor]) -> Job:
    torch.manual_seed(0)
    architecture = find_architecture("cifar10_rnn_gate_38")
    recipes = [
        replace(find_recipe("budget", "sp"), epochs=2, batch=BATCH, rate=0.02),
        replace(find_recipe("budget", "hrl"), epochs=1, batch=BATCH, rate=1e-4),
    ]

    def batches(recipe: Recipe) -> MemoryBatches:
        return MemoryBatches(*images, CIFAR10, 32, recipe.batch, 3, torch.device("cpu"))

    return Job(
        architecture=architecture,
        network=architecture.build(),
        labels=[str(label) for label in range(10)],
        spec=input_spec(CIFAR10, 32),
        recipes=recipes,
        batches=batches,
        validate=lambda network: evaluate_network(network, batches(recipes[0]).epoch(0)),
        device=torch.device("cpu"),
        seed=3,
        folder=tmp_path / "run",
        compile=False,
        mixed=False,
        teacher=None,
        teacher_name="checkpoint",
        origins={"init": "runs/plain"},
        about=TrainingRecord(dataset="synthetic"),
        earlier=[],
    )
