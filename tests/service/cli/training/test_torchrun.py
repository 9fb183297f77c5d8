"""`skipnet train` in several processes that torchrun starts: weights, a killed process, a signal, publishing."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.architectures import find_architecture
from models.checkpoint import Config, read_checkpoint, read_config, write_checkpoint
from models.errors import UserError
from models.training.recipes import find_recipe
from models.training.setup.data import check_shares
from service.cli.main import main
from tests.models.data.parquet_files import write_parquet
from tests.ports import free_port
from tests.service.cli.training.test_finetune import write_photos
from tests.service.parts import SPEC

TRAIN, VALIDATION = 16, 9
TOLERANCE = 0.05
"""Largest difference of a weight from that of one process, as a share of the largest weight of its tensor.

Float32 sums in another order differ by 1e-4 of a gradient, and differences grow from step to step. The tests
in `tests.models.training.distributed` compare in float64.
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ONE_HOST = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 256, (TRAIN + VALIDATION, 32, 32, 3), np.uint8)
    write_parquet(folder / "train.parquet", pixels, [number % 10 for number in range(len(pixels))])
    return folder


@pytest.fixture(scope="module")
def options(data: Path) -> list[str]:
    # Without gates, whose decisions rounding can change.
    return [
        *("train", "--arch", "cifar10_resnet_14", "--dataset", "cifar10", "--data", str(data)),
        *("--recipe", "short", "--epochs", "5", "--batch", "8", "--held-out", str(VALIDATION)),
        *("--changes", '{"rate": 0.005}', "--precision", "float32", "--compile", "off"),
        *("--save-every", "0"),
    ]


@pytest.fixture(scope="module")
def uninterrupted(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that one process trains."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    main([*options, "--output", str(folder)])
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "plain").network.state_dict()


def start(launcher: list[str], options: list[str], output: Path) -> subprocess.Popen[str]:
    command = [*launcher, "-m", "service.cli.main", *options, "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_state(output: Path, process: subprocess.Popen[str]) -> None:
    while not (output / "state.pt").exists():
        assert process.poll() is None, process.communicate()[0]


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        scale = max(float(value.abs().max()), 1e-2)
        assert float((found[name] - value).abs().max()) <= TOLERANCE * scale, name


def test_a_run_on_two_hosts_survives_a_killed_process(
    options: list[str], uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    port = free_port()
    hosts = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    repository = ["--model-repository", str(tmp_path / "models"), "--model", "pair"]
    # The hosts share no folder.
    outputs = tmp_path / "first", tmp_path / "second"
    runs = [
        start([*TORCHRUN, *hosts, "--node-rank", str(rank)], [*options, *repository], output)
        for rank, output in enumerate(outputs)
    ]
    wait_for_state(outputs[0], runs[0])
    [child] = Path(f"/proc/{runs[1].pid}/task/{runs[1].pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    printed = [run.communicate(timeout=120)[0] for run in runs]
    assert all(run.returncode for run in runs)
    assert "skipnet: another process of the run has ended" in printed[0]
    assert "resume from the last saved state with: torchrun --nproc-per-node 1 --no-python skipnet train" in printed[0]
    assert not (tmp_path / "models").exists() and not outputs[1].exists()

    run = start(ONE_HOST, [*options, *repository, "--resume"], outputs[0])
    printed[0] = run.communicate(timeout=300)[0]
    assert run.returncode == 0, printed[0]
    assert_alike(weights(outputs[0]), uninterrupted)
    assert printed[0].count("published:") == 1
    assert [version.name for version in (tmp_path / "models" / "pair").iterdir()] == ["1"]
    assert len((outputs[0] / "log.jsonl").read_text().splitlines()) == 5


def test_a_signal_stops_all_processes_and_one_resumes(
    options: list[str], uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run = start(ONE_HOST, options, tmp_path)
    wait_for_state(tmp_path, run)
    run.send_signal(signal.SIGTERM)
    output = run.communicate(timeout=120)[0]
    assert run.returncode
    assert output.count("skipnet: stopped by SIGTERM; the state is saved in") == 1
    assert f"resume with: torchrun --standalone --nproc-per-node 2 --no-python skipnet {options[0]} --arch" in output
    main([*options, "--output", str(tmp_path), "--resume"])
    assert_alike(weights(tmp_path), uninterrupted)


def test_fine_tuning_trains_in_all_processes_and_publishes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "my photos")
    labels = [str(label) for label in range(10)]
    config = Config(architecture="cifar10_resnet_38", labels=labels, input=SPEC, code="test")
    write_checkpoint(tmp_path / "network", find_architecture("cifar10_resnet_38").build(), config)
    precise = ["--compile", "off", "--precision", "float32"]
    options = ["--data", "my photos", "--recipe", "finetune", "--epochs", "1", "--batch", "8", *precise]
    publish = ["--model-repository", "repository", "--publish-anyway"]
    command = ["train", "--init", str(tmp_path / "network"), "--dataset", "imagefolder", *options, *publish]
    run = start(ONE_HOST, command, tmp_path / "run")
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output
    for once in ("gates alone: ", "measuring the dense", "published: "):
        assert output.count(once) == 1, output
    config = read_config(tmp_path / "repository" / "my_photos" / "1")
    assert config.training.train_images == 24 and len(config.training.stages) == 3
    for stage, steps in (("dense", 3), ("gates", 3), ("routed", 3)):
        [line] = (tmp_path / "run" / stage / "log.jsonl").read_text().splitlines()
        assert json.loads(line)["step"] == steps


@pytest.mark.parametrize("verb", ["teach", "reproduce"])
def test_verbs_of_one_process_refuse_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as left:
        main([verb, "cifar10"])
    assert left.value.code == 1
    assert f"skipnet {verb} runs in one process: start it without torchrun" in capsys.readouterr().err


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    images = range(3)
    recipe = replace(find_recipe("short", "plain"), batch=6)
    check_shares([recipe], images, 3)
    check_shares([recipe], images, 1)
    with pytest.raises(
        UserError, match="2 processes cannot share a batch of 6 in pairs of images: set --batch to a mult"
    ):
        check_shares([recipe], images, 2)
    with pytest.raises(UserError, match="3 validation images are too few for 4 processes"):
        check_shares([replace(recipe, batch=8)], images, 4)
