"""The training loop on a few synthetic images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from models.data.batches import MemoryBatches, generator
from models.errors import UserError
from models.macs import count_macs
from models.training.loop import log_epoch, train
from models.training.objective import Step
from models.training.recipes import Recipe
from models.training.schedule import learning_rate
from models.training.setup.job import make_job
from models.training.setup.options import JobOptions
from models.training.state import Progress
from models.training.types import Job
from tests.models.training.conftest import BATCH, CIFAR10, IMAGES
from tests.models.training.interruption import quiet


def test_validation_keeps_the_mode_of_each_module(job: Job) -> None:
    network = job.network.train()
    freeze = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in freeze:
        module.eval()
    job.validate(network)
    count_macs(network, 32, 32)
    assert network.training and not any(module.training for module in freeze)


def test_the_logged_computation_is_that_of_the_sampled_routes(job: Job) -> None:
    recipes = [replace(recipe, samples=4, epochs=1, gate_bias_init=20.0) for recipe in job.recipes]
    train(replace(job, recipes=recipes), resume=False, save_every=300, show=quiet)
    records = [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    assert [record["train_computation"] for record in records] == [1.0, 1.0]


def test_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU here: leave out --device cuda"):
        make_job(JobOptions(arch="cifar10_rnn_gate_38", dataset="cifar10", data=Path("nowhere"), device="cuda"))


def test_a_diverging_run_stops_with_an_error(job: Job) -> None:
    diverging = replace(job, recipes=[replace(job.recipes[0], rate=1e4)])
    with pytest.raises(UserError, match=r"the loss of sp, epoch \d, is (nan|inf): .* another --output"):
        train(diverging, resume=False, save_every=300, show=quiet)
    assert not (job.folder / "sp").exists()


@pytest.mark.parametrize("statistics", ["frozen", "executed", "re-estimated"])
def test_the_recipe_chooses_the_statistics_of_batch_norm(
    job: Job, statistics: Literal["frozen", "executed", "re-estimated"]
) -> None:
    before = job.network.state_dict()["stem.1.running_mean"].clone()
    train(
        replace(job, recipes=[replace(job.recipes[1], statistics=statistics, iterations=2)]),
        resume=False, save_every=300, show=quiet,
    )  # fmt: skip
    after = job.network.state_dict()["stem.1.running_mean"]
    assert torch.equal(before, after) == (statistics == "frozen")


@pytest.mark.parametrize("stage", [0, 1], ids=["sp", "hrl"])
def test_freeze_backbone_trains_the_gates_only(job: Job, stage: int) -> None:
    before = {name: tensor.clone() for name, tensor in job.network.state_dict().items()}
    alone = replace(job.recipes[stage], freeze_backbone=True, statistics="re-estimated", iterations=3, rate=0.1)
    train(replace(job, recipes=[alone]), resume=False, save_every=300, show=quiet)
    learned = {name for name, tensor in job.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in learned} == {"gates", "controller"}
    # A later stage trains all weights again.
    train(replace(job, recipes=[replace(alone, freeze_backbone=False)]), resume=False, save_every=300, show=quiet)
    assert not torch.equal(job.network.head.weight, before["head.weight"])


def test_freeze_backbone_needs_gates() -> None:
    options = JobOptions(
        arch="cifar10_resnet_38", dataset="cifar10", data=Path("nowhere"), changes={"freeze_backbone": True}
    )
    with pytest.raises(UserError, match="cifar10_resnet_38 has no gates to train alone: leave out freeze_backbone"):
        make_job(options)


def test_order_and_augmentation_depend_on_seed_epoch_and_step_only(images: tuple[Tensor, Tensor]) -> None:
    batches = MemoryBatches(*images, CIFAR10, 32, BATCH, 3, torch.device("cpu"))
    first = list(batches.epoch(1))
    for (expected, labels), (resumed, again) in zip(first[4:], batches.epoch(1, start=4), strict=True):
        assert torch.equal(expected, resumed) and torch.equal(labels, again)
    other = next(batches.epoch(2))
    assert not torch.equal(first[0][0], other[0])
    assert not torch.equal(torch.rand(4, generator=generator(3, 1, 2)), torch.rand(4, generator=generator(3, 2, 1)))


def test_an_image_with_several_sampled_routes_counts_once(job: Job) -> None:
    progress = Progress()
    progress.add(Step(torch.tensor(1.0), torch.tensor(8), torch.tensor(8)), 8 * job.recipes[1].samples, 2.0, 2.0)
    job.folder.mkdir()
    record = log_epoch(job, job.recipes[1], progress, 0)
    assert (job.recipes[1].samples, record["images_per_second"], record["train_accuracy"]) == (2, 4.0, 0.5)


class RecordingWatcher:
    """A watcher that stores its calls."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, int]] = []
        self.records: list[dict[str, object]] = []

    def stepped(self, recipe: Recipe, step: int, steps: int, count: int, rate: float, progress: Progress) -> None:
        assert recipe.stage == "sp" and progress.step == step and progress.sums is not None
        assert rate == learning_rate(recipe, step - 1, steps)
        self.steps.append((step, steps, count))

    def logged(self, record: dict[str, object]) -> None:
        self.records.append(record)


def test_a_watcher_is_called_for_every_step_and_epoch(job: Job) -> None:
    watcher = RecordingWatcher()
    train(replace(job, recipes=job.recipes[:1]), resume=False, save_every=300, show=quiet, watcher=watcher)
    steps = 2 * IMAGES // BATCH
    assert watcher.steps == [(step, steps, BATCH) for step in range(1, steps + 1)]
    assert watcher.records == [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    assert len(watcher.records) == 2
