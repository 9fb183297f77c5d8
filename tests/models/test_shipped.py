"""The shipped checkpoints are what their config.json says, on the real test images and on a photo."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoint import SHIPPED, Checkpoint, read_checkpoint
from models.data.augmentation import normalise
from models.data.catalogue import find_dataset
from models.engines import load_engine
from models.evaluation import BATCH, evaluate_engine
from models.preprocessing import prepare
from tests.models.test_data import packs

FOLDERS = sorted(config.parent for config in SHIPPED.glob("*/*/config.json"))
PHOTO = Path(__file__).parents[1] / "photos" / "cat.jpg"


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return read_checkpoint(request.param)


def test_a_checkpoint_is_shipped() -> None:
    assert SHIPPED / "cifar10_rnn_gate_38" / "1" in FOLDERS


def test_it_reaches_what_was_promised(checkpoint: Checkpoint) -> None:
    evaluation = checkpoint.config.evaluation
    assert evaluation is not None and (evaluation.split, evaluation.images) == ("test", 10_000)
    assert evaluation.accuracy >= 0.86
    assert evaluation.decisions_skipped >= 0.20
    assert len(checkpoint.config.calibration) >= 10


def test_its_figures_are_measured_again(checkpoint: Checkpoint) -> None:
    evaluation = checkpoint.config.evaluation
    assert evaluation is not None
    row = find_dataset(evaluation.dataset)
    pixels, labels = packs().read(evaluation.dataset, "test")
    images, truth = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(images), BATCH):
            batch = normalise(images[start : start + BATCH], row.mean, row.std).contiguous()
            yield batch, truth[start : start + BATCH]

    engine = load_engine(checkpoint)
    try:
        metrics = evaluate_engine(engine, batches(), evaluation.execute_threshold)
    finally:
        engine.close()
    # A probability within rounding of the threshold may fall to either side on another machine.
    assert metrics.accuracy == pytest.approx(evaluation.accuracy, abs=5e-4)
    assert metrics.computation_percentage == pytest.approx(evaluation.computation_percentage, abs=0.05)
    assert checkpoint.macs.executed(metrics.executed).mean() == pytest.approx(evaluation.macs, rel=5e-4)
    np.testing.assert_allclose(metrics.execution_rate, evaluation.execution_rate, atol=2e-3)


@pytest.mark.parametrize("name", ["onnxruntime", "torch", "reference"])
def test_every_engine_gives_the_same_figures(checkpoint: Checkpoint, name: str) -> None:
    evaluation = checkpoint.config.evaluation
    assert evaluation is not None
    pixels, _ = packs().read(evaluation.dataset, "test")
    inputs = np.stack([prepare(Image.fromarray(image), checkpoint.config.input) for image in pixels[:200]])
    answers = []
    for engine in (load_engine(checkpoint), load_engine(checkpoint, name)):
        try:
            answers.append(engine.run(inputs, np.full(200, evaluation.execute_threshold, np.float32)))
        finally:
            engine.close()
    first, second = answers
    np.testing.assert_array_equal(first.executed, second.executed)
    np.testing.assert_array_equal(first.logits.argmax(1), second.logits.argmax(1))


def test_its_card_says_what_its_config_says(checkpoint: Checkpoint) -> None:
    card = (checkpoint.folder / "README.md").read_text()
    evaluation = checkpoint.config.evaluation
    assert evaluation is not None
    saved = 1 - evaluation.macs / evaluation.dense_macs
    for said in (
        f"| top-1 accuracy | {evaluation.accuracy:.2%} |",
        f"| decisions that skip | {evaluation.decisions_skipped:.1%} |",
        f"| computation percentage (the paper's) | {evaluation.computation_percentage:.1f} |",
        f"{evaluation.macs / 1e6:.2f} M of {evaluation.dense_macs / 1e6:.2f} M dense: {saved:.1%} saved",
        *(f"{label} {accuracy:.1%}" for label, accuracy in evaluation.accuracy_per_class.items()),
        *(
            f"| {point.threshold:.2f} | {point.accuracy:.1%} | {point.computation_percentage:.1f} "
            f"| {point.mac_share:.2f} |"
            for point in checkpoint.config.calibration
        ),
    ):
        assert said in card, said


def test_it_decides_by_image(checkpoint: Checkpoint) -> None:
    pixels, _ = packs().read(checkpoint.config.training["dataset"], "test")
    inputs = np.stack([prepare(Image.fromarray(image), checkpoint.config.input) for image in pixels[:200]])
    engine = load_engine(checkpoint)
    try:
        executed = engine.run(inputs, np.full(200, checkpoint.config.execute_threshold, np.float32)).executed
    finally:
        engine.close()
    assert len(np.unique(executed.sum(1))) > 1


def test_the_photo_is_a_cat(checkpoint: Checkpoint) -> None:
    image = prepare(Image.open(PHOTO), checkpoint.config.input)[None]
    engine = load_engine(checkpoint)
    try:
        routed = engine.run(image, np.array([checkpoint.config.execute_threshold], np.float32))
    finally:
        engine.close()
    assert checkpoint.config.labels[int(routed.logits.argmax())] == "cat"
    assert not routed.executed.all()
