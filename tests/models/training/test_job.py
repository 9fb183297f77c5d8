"""Make training jobs from options: data, network, teacher, and the start from a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.architectures import find_architecture
from models.checkpoint import Config, write_checkpoint
from models.data.batches import MemoryBatches, StreamedBatches
from models.data.source import read_source
from models.errors import UserError
from models.model_card.training_commands import list_commands
from models.network import SkipNet
from models.persistence.training_record import TrainedStage
from models.training.setup.data import input_spec
from models.training.setup.job import make_job
from models.training.setup.options import JobOptions
from models.training.types import stage_record
from tests.models.data.parquet_files import CIFAR10, write_parquet


def test_training_keeps_the_normalisation_of_an_imported_start(pixels: np.ndarray, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", pixels, list(range(20)))
    labels = read_source(CIFAR10, "train", tmp_path).classes
    public = input_spec(CIFAR10, 32).model_copy(update={"std": (0.2023, 0.1994, 0.2010)})
    for name in ("rnn_gate", "resnet"):
        arch = find_architecture(f"cifar10_{name}_38")
        training = {"imported_from": f"{name}.pth.tar"}
        config = Config(architecture=arch.name, labels=labels, input=public, training=training, code="test")
        write_checkpoint(tmp_path / name, arch.build(), config)
    options = JobOptions(
        arch="cifar10_rnn_gate_38", dataset="cifar10", output=tmp_path / "run", data=tmp_path, stages="hrl",
        recipe="short", init=tmp_path / "rnn_gate", batch=8, held_out=4,
    )  # fmt: skip
    job = make_job(options)
    assert job.spec == public
    images, _ = next(iter(job.batches(job.recipes[0]).epoch(0)))
    plain, _ = next(
        iter(make_job(options.model_copy(update={"init": None, "stages": "sp"})).batches(job.recipes[0]).epoch(0))
    )
    ratio = torch.tensor(CIFAR10.std) / torch.tensor(public.std)
    torch.testing.assert_close(images.std((0, 2, 3)) / plain.std((0, 2, 3)), ratio)
    config = Config(
        architecture="cifar10_rnn_gate_38", labels=labels, input=public, code="test",
        training={"dataset": "cifar10", "seed": 0, "validation_images": 4, "train_images": 16}
        | {"stages": [*job.earlier, stage_record(job.recipes[0])]},
    )  # fmt: skip
    first, second = list_commands(config)
    imported = "runs/cifar10_rnn_gate_38_imported"
    assert first == f"skipnet import rnn_gate.pth.tar --arch cifar10_rnn_gate_38 --output {imported}"
    assert "--stages hrl " in second and f"--init {imported}" in second
    distilled = options.model_copy(
        update={"init": None, "teacher": tmp_path / "resnet", "recipe": "multi_budget", "stages": "sp"}
    )
    with pytest.raises(UserError, match="use the teacher's teacher_logits"):
        make_job(distilled)


def test_options_that_fit_no_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no gates: its only stage is plain"):
        make_job(JobOptions(arch="cifar10_resnet_38", dataset="cifar10", output=tmp_path, data=tmp_path, stages="sp"))


def test_images_too_small_for_the_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images of 32 pixels are too small.*--size above 32"):
        make_job(JobOptions(arch="imagenet_rnn_gate_18", dataset="imagefolder", data=tmp_path, size=32))


def test_an_image_folder_can_train_a_network_of_small_images(tmp_path: Path) -> None:
    for label, colour in (("dark", 10), ("light", 240)):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (60 + number, 50), (colour,) * 3).save(tmp_path / "train" / label / f"{number}.png")
    options = JobOptions(
        arch="cifar10_rnn_gate_38",
        dataset="imagefolder",
        output=tmp_path,
        data=tmp_path,
        size=32,
        held_out=2,
        batch=4,
        workers=0,
    )
    job = make_job(options)
    batches = job.batches(job.recipes[0])
    assert isinstance(batches, MemoryBatches) and batches.images.shape == (6, 3, 37, 37)
    [(images, _)] = batches.epoch(0)
    assert images.shape == (4, 3, 32, 32) and job.labels == ["dark", "light"]
    assert job.validate(job.network).images == 2


def test_photos_that_exceed_memory_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in ("dark", "light"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (50, 50), (number * 60,) * 3).save(tmp_path / "train" / label / f"{number}.png")
    options = JobOptions(
        arch="imagenet_rnn_gate_18",
        dataset="imagefolder",
        output=tmp_path,
        data=tmp_path,
        size=64,
        held_out=2,
        batch=2,
        workers=0,
    )
    job = make_job(options)
    in_memory = job.validate(job.network)
    monkeypatch.setattr("models.training.setup.data.IN_MEMORY", 2 * 3 * 73**2 - 1)
    batches = job.batches(job.recipes[0])
    assert isinstance(batches, StreamedBatches)
    [(images, _)] = batches.epoch(0)
    assert images.shape == (2, 3, 64, 64)
    np.testing.assert_array_equal(job.validate(job.network).executed, in_memory.executed)


def test_a_checkpoint_of_another_network_is_refused_as_start(tmp_path: Path, pixels: np.ndarray) -> None:
    write_parquet(tmp_path / "train.parquet", pixels, [label % 10 for label in range(20)])
    architecture = find_architecture("cifar10_rnn_gate_38")
    labels = read_source(CIFAR10, "train", tmp_path).classes
    config = Config(architecture=architecture.name, labels=labels, input=input_spec(CIFAR10, 32), code="test")
    write_checkpoint(tmp_path / "start", architecture.build(), config)
    options = JobOptions(
        arch="cifar10_rnn_gate_74",
        dataset="cifar10",
        output=tmp_path,
        data=tmp_path,
        init=tmp_path / "start",
        held_out=5,
    )
    with pytest.raises(UserError, match="is a cifar10_rnn_gate_38, not a cifar10_rnn_gate_74"):
        make_job(options)
    job = make_job(options.model_copy(update={"arch": "cifar10_rnn_gate_rl_38"}))
    assert [recipe.stage for recipe in job.recipes] == ["hrl"]
    with pytest.raises(UserError, match="needs a dense teacher: name one with --teacher"):
        make_job(options.model_copy(update={"arch": "cifar10_rnn_gate_38", "recipe": "multi_budget", "stages": "sp"}))


def test_the_start_must_not_be_trained_on_validation_images(tmp_path: Path, pixels: np.ndarray) -> None:
    write_parquet(tmp_path / "train.parquet", pixels, [label % 10 for label in range(20)])
    dense = find_architecture("cifar10_resnet_38")
    config = Config(
        architecture=dense.name, labels=read_source(CIFAR10, "train", tmp_path).classes,
        input=input_spec(CIFAR10, 32), code="test", training={"dataset": "cifar10", "validation_images": 5},
    )  # fmt: skip
    write_checkpoint(tmp_path / "dense", dense.build(), config)
    options = JobOptions(
        arch=dense.name,
        dataset="cifar10",
        output=tmp_path,
        data=tmp_path,
        recipe="short",
        batch=4,
        init=tmp_path / "dense",
        held_out=6,
    )
    with pytest.raises(UserError, match=r"validated on 5 images and trained on others of the 6 .* set --held-out 5"):
        make_job(options)
    for fewer in (5, 4):
        assert make_job(options.model_copy(update={"held_out": fewer})).about.validation_images == fewer


def test_a_network_with_gates_starts_from_the_dense_one_as_its_teacher(tmp_path: Path, pixels: np.ndarray) -> None:
    write_parquet(tmp_path / "train.parquet", pixels, [label % 10 for label in range(20)])
    dense = find_architecture("cifar10_resnet_38")
    labels = read_source(CIFAR10, "train", tmp_path).classes
    trained = dense.build()
    config = Config(architecture=dense.name, labels=labels, input=input_spec(CIFAR10, 32), code="test")
    write_checkpoint(tmp_path / "dense", trained, config)
    options = JobOptions(
        arch="cifar10_rnn_gate_38", dataset="cifar10", output=tmp_path, data=tmp_path, recipe="multi_budget", held_out=5
    )
    with pytest.raises(UserError, match="needs a teacher: name a dense network's checkpoint with --teacher"):
        make_job(options)
    job = make_job(options.model_copy(update={"init": tmp_path / "dense", "batch": 8}))
    assert [recipe.stage for recipe in job.recipes] == ["sp", "hrl"]
    started = job.network.state_dict()
    assert all(torch.equal(started[key], value) for key, value in trained.state_dict().items())
    assert isinstance(job.teacher, SkipNet) and job.teacher.gate_kind is None


def test_a_dense_network_starts_from_the_blocks_of_one_with_gates(tmp_path: Path, pixels: np.ndarray) -> None:
    write_parquet(tmp_path / "train.parquet", pixels, [label % 10 for label in range(20)])
    routed = find_architecture("cifar10_rnn_gate_38")
    labels = read_source(CIFAR10, "train", tmp_path).classes
    plain: dict[str, Any] = {"name": "short", "stage": "plain", "epochs": 1, "batch": 8}
    trained, stages = routed.build(), [plain, plain | {"stage": "sp"}]
    config = Config(
        architecture=routed.name, labels=labels, input=input_spec(CIFAR10, 32), code="test", training={"stages": stages}
    )
    write_checkpoint(tmp_path / "routed", trained, config)
    options = JobOptions(
        arch="cifar10_resnet_38", dataset="cifar10", output=tmp_path, data=tmp_path, held_out=5, batch=8
    )
    job = make_job(options.model_copy(update={"init": tmp_path / "routed"}))
    theirs = trained.state_dict()
    assert all(torch.equal(theirs[key], value) for key, value in job.network.state_dict().items())
    assert job.network.gate_kind is None and [recipe.stage for recipe in job.recipes] == ["plain"]
    # The record names the network that a stage trained.
    assert job.earlier == [TrainedStage(**plain), TrainedStage(architecture=routed.name, **stages[1])]
