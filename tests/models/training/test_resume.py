"""Resume a killed run, and keep the state of an unfinished one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.architectures import find_architecture
from models.checkpoint import read_checkpoint
from models.errors import UserError
from models.training.loop import train
from models.training.setup.data import input_spec
from models.training.state import Progress, StateFile
from models.training.types import Job
from tests.models.training.conftest import CIFAR10
from tests.models.training.interruption import Killed, KilledAfter, quiet


@pytest.mark.parametrize("kill_at", [4, 13])
def test_a_killed_run_resumes_to_the_same_weights(job: Job, tmp_path: Path, kill_at: int) -> None:
    fresh = {key: value.clone() for key, value in job.network.state_dict().items()}
    uninterrupted = train(replace(job, folder=tmp_path / "uninterrupted"), resume=False, save_every=0, show=quiet)

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

    expected = read_checkpoint(uninterrupted).network.state_dict()
    for key, value in read_checkpoint(resumed).network.state_dict().items():
        assert torch.equal(value, expected[key]), key
    stages = [json.loads(line)["stage"] for line in log.read_text().splitlines()]
    assert stages == ["sp", "sp", "hrl"]


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
