"""The training loop on a few synthetic images."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from models.architectures import find_architecture
from models.checkpoint import read_checkpoint
from models.data.batches import MemoryBatches, generator
from models.data.datasets import find_dataset
from models.errors import UserError
from models.evaluation.metrics import evaluate_network
from models.macs import count_macs
from models.persistence.training_record import TrainingRecord
from models.training.loop import log_epoch, train
from models.training.objective import Step
from models.training.recipes import Recipe, find_recipe
from models.training.schedule import annealing_progress, learning_rate
from models.training.setup.data import input_spec
from models.training.setup.job import make_job
from models.training.setup.options import JobOptions
from models.training.stages.gate_readout import set_gate_bias
from models.training.stages.supervised import straight_through, supervised_step
from models.training.state import Progress, StateFile
from models.training.types import Job
from tests.models.training.interruption import Killed, KilledAfter, quiet

IMAGES, BATCH = 48, 8
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


@pytest.mark.parametrize("kill_at", [4, 13])
def test_a_killed_run_resumes_to_the_same_weights(job: Job, tmp_path: Path, kill_at: int) -> None:
    fresh = {key: value.clone() for key, value in job.network.state_dict().items()}
    whole = train(replace(job, folder=tmp_path / "whole"), resume=False, save_every=0, show=quiet)

    job.network.load_state_dict(fresh)
    log = job.folder / "log.jsonl"
    log.parent.mkdir()
    log.write_text('{"stage": "of another run"}\n')
    with pytest.raises(Killed):
        train(job, resume=False, save_every=0, show=KilledAfter(kill_at))
    with log.open("a") as file:
        file.write('{"stage": "an epoch that is to be done again')
    # As in another process, only the state file is kept.
    again = replace(job, network=find_architecture("cifar10_rnn_gate_38").build())
    resumed = train(again, resume=True, save_every=0, show=quiet)

    expected = read_checkpoint(whole).network.state_dict()
    for key, value in read_checkpoint(resumed).network.state_dict().items():
        assert torch.equal(value, expected[key]), key
    stages = [json.loads(line)["stage"] for line in log.read_text().splitlines()]
    assert stages == ["sp", "sp", "hrl"]


def test_validation_keeps_the_mode_of_each_module(job: Job) -> None:
    network = job.network.train()
    freeze = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in freeze:
        module.eval()
    job.validate(network)
    count_macs(network, 32, 32)
    assert network.training and not any(module.training for module in freeze)


def with_first(job: Job, **changes: Any) -> Job:
    return replace(job, recipes=[replace(job.recipes[0], **changes), job.recipes[1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: replace(job, recipes=job.recipes[1:]), r"stages=\['hrl'\]"),
        (lambda job: with_first(job, batch=4), "sp batch=4"),
        (lambda job: with_first(job, per_sample_spread=0.5), "sp per_sample_spread=0.5"),
        (lambda job: with_first(job, operating_points=()), r"sp operating_points=\(\)"),
        (lambda job: replace(job, spec=input_spec(CIFAR10, 64)), "size=64"),
        (lambda job: replace(job, compile=True), "compile=True"),
        (lambda job: replace(job, origins={}), "init=None"),
    ],
)
def test_a_state_of_another_run_is_refused(job: Job, change: Callable[[Job], Job], message: str) -> None:
    job.folder.mkdir(parents=True)
    StateFile(job.folder, change(job).identity, 0).save(Progress(), job.network, None)
    with pytest.raises(UserError, match=message):
        train(job, resume=True, save_every=300, show=quiet)


def test_a_damaged_or_foreign_state_says_what_to_do(job: Job) -> None:
    job.folder.mkdir(parents=True)
    file = job.folder / "state.pt"
    for content in (b"half a file", [1], {"epoch": 3}, {"identity": job.identity, "network": {}}):
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        with pytest.raises(UserError, match="train without --resume"):
            train(job, resume=True, save_every=300, show=quiet)


def test_an_unfinished_run_is_not_overwritten(job: Job) -> None:
    with pytest.raises(Killed):
        train(job, resume=False, save_every=0, show=KilledAfter(8))
    log, state = job.folder / "log.jsonl", job.folder / "state.pt"
    before = log.read_bytes(), state.read_bytes()
    assert before[0]
    for again in (job, replace(job, recipes=job.recipes[1:])):
        with pytest.raises(UserError, match="an unfinished run: add --resume to continue it, or choose another"):
            train(again, resume=False, save_every=0, show=quiet)
    assert (log.read_bytes(), state.read_bytes()) == before


def test_a_finished_run_and_a_damaged_state_are_overwritten(job: Job) -> None:
    first, second = ([replace(recipe, epochs=1)] for recipe in job.recipes)
    train(replace(job, recipes=first), resume=False, save_every=300, show=quiet)
    train(replace(job, recipes=second), resume=False, save_every=300, show=quiet)
    assert (job.folder / "sp").is_dir() and (job.folder / "hrl").is_dir()
    (job.folder / "state.pt").write_bytes(b"half a file")
    train(replace(job, recipes=second), resume=False, save_every=300, show=quiet)


def test_a_new_run_does_not_resume_from_a_finished_one(job: Job) -> None:
    short = replace(job, recipes=[replace(job.recipes[0], epochs=1)])
    train(short, resume=False, save_every=300, show=quiet)
    with pytest.raises(Killed):
        train(short, resume=False, save_every=300, show=KilledAfter(1))
    again = KilledAfter(1)
    with pytest.raises(Killed):
        train(short, resume=True, save_every=300, show=again)
    assert again.taken == 1


def test_the_logged_computation_is_that_of_the_sampled_routes(job: Job) -> None:
    recipes = [replace(recipe, samples=4, epochs=1, gate_bias_init=20.0) for recipe in job.recipes]
    train(replace(job, recipes=recipes), resume=False, save_every=300, show=quiet)
    rows = [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    assert [row["train_computation"] for row in rows] == [1.0, 1.0]


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
    # A later stage trains the whole network again.
    train(replace(job, recipes=[replace(alone, freeze_backbone=False)]), resume=False, save_every=300, show=quiet)
    assert not torch.equal(job.network.head.weight, before["head.weight"])


def test_freeze_backbone_needs_gates() -> None:
    options = JobOptions(
        arch="cifar10_resnet_38", dataset="cifar10", data=Path("nowhere"), changes={"freeze_backbone": True}
    )
    with pytest.raises(
        UserError, match="cifar10_resnet_38 has no gates that could learn alone: leave out freeze_backbone"
    ):
        make_job(options)


def test_soft_gates_scale_the_block_by_their_probability() -> None:
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    network = find_architecture("cifar10_rnn_gate_38").build()
    step = supervised_step(
        network, images, labels, torch.tensor(1.0), replace(find_recipe("short", "sp"), gates="soft")
    )
    # New gates have probabilities near 0.5, so each block counts about half. Hard gates would give a whole number.
    executed = 18 * step.computation - 4
    assert 0.3 * 68 < executed < 0.7 * 68
    assert abs(float(executed) - round(float(executed))) > 1e-4


def test_supervised_gates_are_hard_forward_and_soft_backward() -> None:
    logits = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    limits = torch.tensor([0.0, 0.0, 2.0])
    decisions = straight_through(limits)(0, logits)
    torch.testing.assert_close(decisions.detach(), torch.tensor([0.0, 0.0, 0.0]))
    torch.testing.assert_close(straight_through(torch.zeros(3))(0, logits).detach(), torch.tensor([0.0, 0.0, 1.0]))
    decisions.sum().backward()  # type: ignore[no-untyped-call]
    probability = torch.sigmoid(logits.detach() - limits)
    torch.testing.assert_close(logits.grad, probability * (1 - probability))


@pytest.mark.parametrize("name", ["cifar10_rnn_gate_38", "cifar10_feedforward_38"])
def test_the_gate_bias_executes_or_skips_every_block(name: str) -> None:
    network = find_architecture(name).build().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        set_gate_bias(network, -1e3)
        assert not network(images)[1].decisions.any()
        set_gate_bias(network, 1e3)
        assert network(images)[1].decisions.all()


def test_the_schedule_of_the_paper() -> None:
    recipe = find_recipe("paper", "sp")
    rates = [learning_rate(recipe, step, 64_000) for step in (0, 399, 400, 31_999, 32_000, 47_999, 48_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_target_rates_are_annealed_between_a_fifth_and_three_fifths() -> None:
    recipe = find_recipe("budget", "sp")
    progress = [annealing_progress(recipe, step, 100) for step in (0, 20, 40, 60, 99)]
    assert progress == pytest.approx([0, 0, 0.5, 1, 1])
    at_once = replace(recipe, target_annealing=(0.1, 0.1))
    assert [annealing_progress(at_once, step, 100) for step in (0, 9, 10, 99)] == [0, 0, 1, 1]


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
    row = log_epoch(job, job.recipes[1], progress, 0)
    assert (job.recipes[1].samples, row["images_per_second"], row["train_accuracy"]) == (2, 4.0, 0.5)


def test_a_batch_smaller_than_the_operating_points_has_a_loss() -> None:
    network = find_architecture("cifar10_rnn_gate_38").build()
    images, labels = torch.randn(2, 3, 32, 32), torch.arange(2)
    for recipe in ("multi_budget", "adaptive"):
        assert supervised_step(network, images, labels, torch.tensor(1.0), find_recipe(recipe, "sp")).loss.isfinite()


class RecordingWatcher:
    """A watcher that stores its calls."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, int]] = []
        self.rows: list[dict[str, object]] = []

    def stepped(self, recipe: Recipe, step: int, steps: int, images: int, rate: float, progress: Progress) -> None:
        assert recipe.stage == "sp" and progress.step == step and progress.sums is not None
        assert rate == learning_rate(recipe, step - 1, steps)
        self.steps.append((step, steps, images))

    def logged(self, row: dict[str, object]) -> None:
        self.rows.append(row)


def test_a_watcher_is_called_for_every_step_and_epoch(job: Job) -> None:
    watcher = RecordingWatcher()
    train(replace(job, recipes=job.recipes[:1]), resume=False, save_every=300, show=quiet, watcher=watcher)
    steps = 2 * IMAGES // BATCH
    assert watcher.steps == [(step, steps, BATCH) for step in range(1, steps + 1)]
    assert watcher.rows == [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    assert len(watcher.rows) == 2
