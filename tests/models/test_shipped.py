"""The shipped checkpoints reproduce the figures in their config.json."""

import json
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models import SHIPPED
from models.checkpoint import Checkpoint, read_checkpoint
from models.engines import load_engine
from models.engines.protocol import Engine, Routed
from models.evaluation.metrics import BATCH, evaluate_engine
from models.preprocessing import prepare
from tests.models.data.parquet_files import read_images
from tests.research import shared

FOLDERS = sorted(weights.parent for weights in SHIPPED.glob("*/*/model.safetensors"))
PROMISED = {"cifar10": 0.86, "cifar100": 0.66, "imagefolder": 0.80}
"""Top-1 accuracy."""
PHOTO = Path(__file__).parents[1] / "photos" / "cat.jpg"
SAMPLE = 100
"""Test images on which the engines are compared."""


def named(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


@pytest.fixture(scope="module", params=FOLDERS, ids=named)
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return read_checkpoint(request.param)


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> Iterator[Engine]:
    """The engine that a server chooses for the checkpoint."""
    chosen = load_engine(checkpoint)
    yield chosen
    chosen.close()


@pytest.fixture(scope="module")
def sample(checkpoint: Checkpoint) -> NDArray[np.float32]:
    """The network's input for some of its test images."""
    images, _ = read_test_set(checkpoint, SAMPLE)
    return np.stack([prepare(image, checkpoint.config.input) for image in images])


@pytest.fixture(scope="module")
def routed(checkpoint: Checkpoint, engine: Engine, sample: NDArray[np.float32]) -> Routed:
    """The engine's output for the sample."""
    return engine.run(sample, np.full(SAMPLE, checkpoint.config.execute_threshold, np.float32))


def read_test_set(checkpoint: Checkpoint, count: int | None = None) -> tuple[list[Image.Image], NDArray[np.int64]]:
    """Return the test images, or the first ``count``, of the data set that a checkpoint was trained on."""
    dataset = checkpoint.config.training.dataset
    assert dataset is not None
    if dataset != "imagefolder":
        pixels, labels = read_images(dataset, "test")
        return [Image.fromarray(image) for image in pixels[:count]], labels[:count]
    with zipfile.ZipFile(shared("data/imagenette2_128_webp75.zip")) as photos:
        classes = json.loads(photos.read("meta.json"))["classes"]
        names = sorted(name for name in photos.namelist() if name.startswith("val/") and name.endswith(".webp"))
        # The images are spread over the classes, which are stored one after the other.
        names = names[:: len(names) // count][:count] if count else names
        images = [Image.open(BytesIO(photos.read(name))).convert("RGB") for name in names]
    return images, np.array([checkpoint.config.labels.index(classes[name.split("/")[1]]) for name in names])


def test_one_version_of_each_model_is_shipped() -> None:
    assert [named(folder) for folder in FOLDERS] == [
        "cifar100_rnn_gate_38/3", "cifar10_resnet_38/3", "cifar10_rnn_gate_110/1", "cifar10_rnn_gate_38/9",
        "cifar10_rnn_gate_38_accurate/5", "cifar10_rnn_gate_38_frugal/5", "imagenette_rnn_gate_18/1",
    ]  # fmt: skip


def test_the_shipped_checkpoints_are_small() -> None:
    # The accurate model links to the weights of the default, because they differ only in the execute threshold.
    assert sum(file.lstat().st_size for file in SHIPPED.rglob("*")) < 30 << 20


def test_it_reaches_its_documented_accuracy(checkpoint: Checkpoint) -> None:
    evaluation = checkpoint.config.evaluation
    assert evaluation is not None and evaluation.split == "test"
    assert evaluation.images == (3_925 if evaluation.dataset == "imagefolder" else 10_000)
    assert evaluation.accuracy >= PROMISED[evaluation.dataset]


def test_gates_skip_a_fifth_of_the_blocks_and_are_calibrated(checkpoint: Checkpoint) -> None:
    evaluation = checkpoint.config.evaluation
    assert evaluation is not None
    assert checkpoint.network.gate_kind is None or evaluation.decisions_skipped >= 0.20
    assert checkpoint.network.gate_kind is None or len(checkpoint.config.calibration) >= 10


def test_its_figures_are_reproduced(checkpoint: Checkpoint, engine: Engine) -> None:
    evaluation = checkpoint.config.evaluation
    assert evaluation is not None
    images, labels = read_test_set(checkpoint)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(images), BATCH):
            batch = np.stack([prepare(image, checkpoint.config.input) for image in images[start : start + BATCH]])
            yield torch.from_numpy(batch), torch.from_numpy(labels[start : start + BATCH])

    metrics = evaluate_engine(engine, batches(), evaluation.execute_threshold)
    # A probability near the threshold may be on either side of it on another machine.
    assert metrics.accuracy == pytest.approx(evaluation.accuracy, abs=5e-4)
    assert metrics.computation_percentage == pytest.approx(evaluation.computation_percentage, abs=0.05)
    assert checkpoint.macs.executed(metrics.executed).mean() == pytest.approx(evaluation.macs, rel=5e-4)
    np.testing.assert_allclose(metrics.execution_rate, evaluation.execution_rate, atol=2e-3)


@pytest.mark.parametrize("name", ["onnxruntime", "torch", "reference"])
def test_every_engine_gives_the_same_figures(
    checkpoint: Checkpoint, routed: Routed, sample: NDArray[np.float32], name: str
) -> None:
    other = load_engine(checkpoint, name, routing="mask" if name == "reference" else "branch")
    try:
        expected = other.run(sample, np.full(SAMPLE, checkpoint.config.execute_threshold, np.float32))
    finally:
        other.close()
    np.testing.assert_array_equal(routed.executed, expected.executed)
    np.testing.assert_array_equal(routed.logits.argmax(1), expected.logits.argmax(1))


def test_decisions_depend_on_the_image(checkpoint: Checkpoint, routed: Routed) -> None:
    distinct = len(np.unique(routed.executed.sum(1)))
    assert distinct == 1 if checkpoint.network.gate_kind is None else distinct > 1


def test_networks_with_a_class_cat_recognise_the_photo(checkpoint: Checkpoint, engine: Engine) -> None:
    image = prepare(Image.open(PHOTO), checkpoint.config.input)[None]
    routed = engine.run(image, np.array([checkpoint.config.execute_threshold], np.float32))
    if "cat" in checkpoint.config.labels:
        assert checkpoint.config.labels[int(routed.logits.argmax())] == "cat"
    assert not checkpoint.network.decision_count or not routed.executed.all()
