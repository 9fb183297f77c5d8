"""Distillation teachers: their training, their files, and how students use them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from models.checkpoint import read_config
from models.data.augmentation import normalise
from models.data.datasets import find_dataset
from models.data.source import read_source
from models.data.validation_split import split_positions
from models.errors import UserError
from models.experiments.catalogue import find_row
from models.experiments.runner import reproduce
from models.network import SkipNet
from models.training import objective
from models.training import step as training_step
from models.training.distillation import training as teacher_training
from models.training.distillation.location import LOGITS_FILE, TEACHER_FILE
from models.training.distillation.logits import compute_teacher_logits, read_teacher_logits, write_teacher_logits
from models.training.distillation.network import (
    TEACHERS,
    TeacherNetwork,
    read_teacher,
    whitening_filters,
    write_teacher,
)
from models.training.distillation.training import train_teacher
from models.training.loop import train
from models.training.recipes import Stage
from models.training.setup.job import make_job
from models.training.setup.options import JobOptions
from models.training.stages.supervised import supervised_step
from tests.models.data.parquet_files import write_cifar10
from tests.models.experiments.test_runner import never, plan_in, tiny
from tests.models.training.interruption import Killed, KilledAfter, quiet

CIFAR10 = find_dataset("cifar10")
TRAIN, HELD_OUT = 48, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar10")
    write_cifar10(folder, TRAIN, 16)
    return folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_training, "BATCH", 8)
    monkeypatch.setattr(teacher_training, "RATE", 0.01)


Show = Callable[[Iterator[int]], Iterator[int]]


def teach_in(
    folder: Path, data: Path, epochs: int = 2, show: Show = quiet, network: str = "small", save_every: float = 300
) -> Tensor:
    source = read_source(CIFAR10, "train", data)
    train_teacher(
        source,
        folder,
        network=network,
        epochs=epochs,
        held_out=HELD_OUT,
        limit=None,
        seed=0,
        device=torch.device("cpu"),
        save_every=save_every,
        show=show,
    )
    return read_teacher_logits(folder / LOGITS_FILE, "cifar10", TRAIN, 10)


def test_the_first_layer_whitens_patches(data: Path) -> None:
    pixels, _ = read_source(CIFAR10, "train", data).in_memory(32)
    images = normalise(pixels, CIFAR10.mean, CIFAR10.std)
    found = conv2d(images, whitening_filters(images)).permute(1, 0, 2, 3).flatten(1)
    # The directions of least variance vary less than the added noise, and stay small.
    covariance = found @ found.T / found.shape[1]
    assert covariance.diagonal().max() == pytest.approx(1, abs=0.02)
    assert covariance.diagonal().sort().values[2] > 0.8
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3


def test_a_killed_teacher_resumes_to_the_same_logits(data: Path, tmp_path: Path) -> None:
    complete = teach_in(tmp_path / "complete", data)
    with pytest.raises(Killed):
        teach_in(tmp_path / "killed", data, show=KilledAfter(6), save_every=0)
    assert not (tmp_path / "killed" / LOGITS_FILE).exists()
    assert torch.equal(teach_in(tmp_path / "killed", data), complete)
    given = (tmp_path / "killed" / LOGITS_FILE).stat()
    assert torch.equal(teach_in(tmp_path / "killed", data), complete)
    assert (tmp_path / "killed" / LOGITS_FILE).stat() == given  # A finished run does not compute the logits again.
    with pytest.raises(UserError, match="epochs=2"):
        teach_in(tmp_path / "killed", data, epochs=3)
    assert len((tmp_path / "complete" / "log.jsonl").read_text().splitlines()) == 2


def test_a_teacher_fits_its_training_images(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_training, "RATE", 0.05)
    logits = teach_in(tmp_path, data, epochs=20)
    source = read_source(CIFAR10, "train", data)
    _, labels = source.in_memory(32)
    train, _ = split_positions(source, HELD_OUT)
    assert (logits[train].argmax(1) == labels[train]).float().mean() > 0.9


def test_a_diverging_teacher_is_an_error(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_training, "RATE", 1e30)
    with pytest.raises(UserError, match=r"the loss of the teacher, epoch \d, is (nan|inf)"):
        teach_in(tmp_path, data)
    assert not (tmp_path / LOGITS_FILE).exists()


def test_too_few_images_for_a_teacher_are_an_error(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_training, "BATCH", 33)
    with pytest.raises(UserError, match="32 training images do not fill a teacher's batch of 33"):
        teach_in(tmp_path, data)


def test_the_logits_of_a_teacher_ignore_mirroring(data: Path) -> None:
    pixels, _ = read_source(CIFAR10, "train", data).in_memory(32)
    network = TeacherNetwork(10).eval()
    network.whiten(normalise(pixels, CIFAR10.mean, CIFAR10.std))
    logits = compute_teacher_logits(network, pixels, CIFAR10)
    torch.testing.assert_close(logits, compute_teacher_logits(network, pixels.flip(3), CIFAR10))
    with torch.no_grad():
        alone = network(normalise(pixels, CIFAR10.mean, CIFAR10.std))
    assert not torch.allclose(logits, alone)


def test_logits_of_other_images_are_refused(tmp_path: Path) -> None:
    file = tmp_path / LOGITS_FILE
    logits = torch.randn(7, 10)
    write_teacher_logits(file, logits, "cifar10", "small")
    torch.testing.assert_close(read_teacher_logits(file, "cifar10", 7, 10), logits, atol=1e-2, rtol=1e-3)
    for dataset, images, classes in (("svhn", 7, 10), ("cifar10", 8, 10), ("cifar10", 7, 100)):
        with pytest.raises(UserError, match="holds logits for 7 images of cifar10 in 10 classes"):
            read_teacher_logits(file, dataset, images, classes)
    write_teacher_logits(file, logits.log(), "cifar10", "small")
    with pytest.raises(UserError, match="holds NaN or infinity"):
        read_teacher_logits(file, "cifar10", 7, 10)
    file.write_bytes(b"half a file")
    with pytest.raises(UserError, match="cannot be read as a teacher's logits"):
        read_teacher_logits(file, "cifar10", 7, 10)


def test_each_image_gets_its_own_teacher_logits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = read_source(CIFAR10, "train", data)
    _, labels = source.in_memory(32)
    # This teacher is always correct, so the classes of its logits must be the labels of the batch.
    write_teacher_logits(tmp_path / LOGITS_FILE, torch.nn.functional.one_hot(labels, 10).float(), "cifar10", "small")
    options = JobOptions(
        arch="cifar10_rnn_gate_38", dataset="cifar10", output=tmp_path / "run", data=data, stages="sp",
        recipe="multi_budget", teacher=tmp_path / LOGITS_FILE, epochs=1, batch=8, held_out=HELD_OUT, limit=24,
        compile="off",
    )  # fmt: skip
    seen = []

    def watched(*arguments: Any) -> object:
        seen.append((arguments[2], arguments[5]))
        return supervised_step(*arguments)

    monkeypatch.setattr(training_step, "supervised_step", watched)
    train(make_job(options), resume=False, save_every=300, show=quiet)
    assert len(seen) == 3
    for of, logits in seen:
        assert isinstance(of, Tensor) and isinstance(logits, Tensor)
        assert torch.equal(logits.argmax(1), of)


def test_a_teacher_network_is_written_and_read(data: Path, tmp_path: Path) -> None:
    logits = teach_in(tmp_path, data, network="large")
    network = read_teacher(tmp_path / TEACHER_FILE, "cifar10", 10)
    assert network.head.in_features == 2 * TeacherNetwork(10).head.in_features and not network.training
    pixels, _ = read_source(CIFAR10, "train", data).in_memory(32)
    torch.testing.assert_close(compute_teacher_logits(network, pixels, CIFAR10), logits, atol=1e-2, rtol=1e-2)
    with pytest.raises(UserError, match="network='large'"):
        teach_in(tmp_path, data, network="small")


def test_a_teacher_of_another_data_set_is_refused(tmp_path: Path) -> None:
    file = tmp_path / TEACHER_FILE
    write_teacher(file, TeacherNetwork(10), "cifar10", "small")
    for dataset, classes in (("svhn", 10), ("cifar10", 100)):
        with pytest.raises(UserError, match=f"for cifar10 in 10 classes, not for {dataset} in {classes}"):
            read_teacher(file, dataset, classes)
    write_teacher_logits(file, torch.zeros(7, 10), "cifar10", "small")
    with pytest.raises(UserError, match="cannot be read as a teacher"):
        read_teacher(file, "cifar10", 10)


@pytest.mark.parametrize("stage", ["plain", "sp", "hrl"])
def test_an_online_teacher_gets_the_augmented_images(
    stage: Stage, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_in(tmp_path, data, network="large")
    arch = "cifar10_resnet_38" if stage == "plain" else "cifar10_rnn_gate_38"
    options = JobOptions(
        arch=arch, dataset="cifar10", output=tmp_path / "run", data=data, stages=stage, recipe="distilled",
        teacher=tmp_path / TEACHER_FILE, epochs=1, batch=8, held_out=HELD_OUT, limit=24, compile="off",
        changes={"mixup": 1.0},
    )  # fmt: skip
    job = make_job(options)
    assert isinstance(job.teacher, TeacherNetwork)
    teacher_calls, seen = [], []
    job.teacher.register_forward_hook(lambda _, given, logits: teacher_calls.append((given[0], logits)))
    distillation_loss, student_forward = objective.distillation_loss, type(job.network).forward

    def observed_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        seen.append(teacher_logits)
        return distillation_loss(logits, teacher_logits, temperature)

    def forward(network: SkipNet, images: Tensor, *rest: object, **more: object) -> object:
        if network.training:
            trained.append(images)
        return student_forward(network, images, *rest, **more)  # type: ignore[arg-type]

    trained: list[Tensor] = []
    monkeypatch.setattr(objective, "distillation_loss", observed_loss)
    monkeypatch.setattr(SkipNet, "forward", forward)
    folder = train(job, resume=False, save_every=300, show=quiet)
    assert len(teacher_calls) == len(seen) == len(trained) == 3
    for (images, logits), used_logits, student_images in zip(teacher_calls, seen, trained, strict=True):
        torch.testing.assert_close(used_logits[: len(images)], logits.float())
        torch.testing.assert_close(student_images[: len(images)], images)
        assert images.std() < 0.95 * job.batches(job.recipes[0]).epoch(0).__next__()[0].std()
    (trained_stage,) = read_config(folder).training.stages
    assert trained_stage.teacher == "large" and trained_stage.mixup == 1.0


def test_a_teacher_of_other_options_is_refused(data: Path, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, data)
    plan = replace(plan, shared=plan.shared.model_copy(update={"epochs": 1}), held_out=HELD_OUT)
    teach_in(tmp_path / "cifar10_teacher_small", data, epochs=2)
    with pytest.raises(UserError, match=r"state.pt belongs to a run with .*epochs=2"):
        reproduce(plan, tiny("plain-distilled"), 0, save_every=300, show=quiet)
    # The options of a teacher without a state file are unknown.
    (tmp_path / "cifar10_teacher_small" / "state.pt").unlink()
    assert (
        make_job(plan.options(tiny("plain-distilled"), 0).model_copy(update={"init": None, "limit": 24})).teacher
        is not None
    )


def test_a_row_with_the_large_teacher_trains_it_first(data: Path, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, data)
    plan = replace(plan, shared=plan.shared.model_copy(update={"epochs": 1}), held_out=HELD_OUT)
    assert (
        plan.options(find_row("distilled-long-hrl-half", "short"), 0).teacher
        == tmp_path / "cifar10_teacher_large" / LOGITS_FILE
    )
    teacher = plan.options(find_row("distilled-long", "short"), 0).teacher
    assert teacher == tmp_path / "cifar10_teacher_large" / TEACHER_FILE
    reproduce(plan, tiny("distilled-long"), 0, save_every=300, show=quiet)
    assert read_teacher(teacher, "cifar10", 10).head.in_features == TEACHERS["large"].width * 256
    assert not (tmp_path / "cifar10_teacher_small").exists()


def test_a_row_with_distillation_trains_its_teacher_first(data: Path, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, data)
    plan = replace(plan, shared=plan.shared.model_copy(update={"epochs": 1}), held_out=HELD_OUT)
    row = replace(tiny("distilled"), start=None)
    reproduce(plan, row, 0, save_every=300, show=quiet)
    logits_file = tmp_path / "cifar10_teacher_small" / LOGITS_FILE
    written = logits_file.stat().st_mtime_ns
    assert plan.options(find_row("distilled-hrl", "short"), 0).teacher == logits_file
    (tmp_path / "results" / "cifar10_38" / "short" / "distilled-0.json").unlink()
    reproduce(plan, row, 0, save_every=300, show=quiet)
    assert logits_file.stat().st_mtime_ns == written
    # A finished row does not need its teacher.
    logits_file.unlink()
    reproduce(plan, row, 0, save_every=300, show=never)
