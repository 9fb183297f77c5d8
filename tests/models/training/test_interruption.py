"""SIGINT and SIGTERM stop a run after its step, and the run resumes to the same weights."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.architectures import find_architecture
from models.checkpoint import read_checkpoint
from models.data.batches import MemoryBatches
from models.data.datasets import find_dataset
from models.evaluation.metrics import evaluate_network
from models.persistence.training_record import TrainingRecord
from models.training.interruption import TrainingStopped, stop_on_signals
from models.training.loop import train
from models.training.recipes import Recipe, find_recipe
from models.training.setup.data import input_spec
from models.training.types import Job
from service.cli.training.options import resumable
from tests.models.training.interruption import quiet

DATASET = find_dataset("cifar10")
PIXELS = torch.randint(0, 256, (16, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def job_in(folder: Path) -> Job:
    torch.manual_seed(0)
    architecture = find_architecture("cifar10_resnet_38")
    recipe = replace(find_recipe("short", "plain"), epochs=2, batch=4, rate=0.02)

    def batches(recipe: Recipe) -> MemoryBatches:
        return MemoryBatches(PIXELS, torch.arange(16) % 10, DATASET, 32, recipe.batch, 3, torch.device("cpu"))

    return Job(
        architecture=architecture,
        network=architecture.build(),
        labels=[str(label) for label in range(10)],
        spec=input_spec(DATASET, 32),
        recipes=[recipe],
        batches=batches,
        validate=lambda network: evaluate_network(network, batches(recipe).epoch(0)),
        device=torch.device("cpu"),
        seed=3,
        folder=folder,
        compile=False,
        mixed=False,
        teacher=None,
        teacher_name="checkpoint",
        origins={},
        about=TrainingRecord(dataset="synthetic"),
        earlier=[],
    )


def signal_before(number: int, step: int) -> Callable[[Iterator[int]], Iterator[int]]:
    """Return a wrapper of the steps that sends a signal to this process before step ``step``."""

    def show(steps: Iterator[int]) -> Iterator[int]:
        for each in steps:
            if each == step:
                signal.raise_signal(number)
            yield each

    return show


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3])
def test_a_signal_saves_the_state_and_the_run_resumes(tmp_path: Path, number: signal.Signals, step: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(TrainingStopped, match=rf"stopped by {number.name}; the state is saved in .*state\.pt"):
        train(job_in(tmp_path / "run"), resume=False, save_every=3600, show=signal_before(number, step))
    assert signal.getsignal(number) is before
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["progress"]["step"] == step + 1
    resumed = train(job_in(tmp_path / "run"), resume=True, save_every=3600, show=quiet)
    uninterrupted = train(job_in(tmp_path / "uninterrupted"), resume=False, save_every=3600, show=quiet)
    expected = read_checkpoint(uninterrupted).network.state_dict()
    found = read_checkpoint(resumed).network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_second_signal_ends_the_process_at_once() -> None:
    # A process that a shell starts in the background ignores SIGINT, so it gets Python's usual handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_the_resume_command_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["skipnet", "train", "--output", "my run"])
    with pytest.raises(SystemExit) as left, resumable("--resume"):
        raise TrainingStopped(signal.SIGTERM, tmp_path / "state.pt")
    assert left.value.code == 143
    assert "resume with: skipnet train --output 'my run' --resume\n" in capsys.readouterr().err
