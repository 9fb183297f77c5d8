"""A network for photos is trained, written, run by every engine and served."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import Checkpoint, read_checkpoint, write_config
from models.engines import load_engine
from models.model_repository import publish
from models.preprocessing import prepare
from models.training.loop import train
from models.training.setup.job import make_job
from models.training.setup.options import JobOptions
from service.settings import Settings
from tests.models.training.interruption import quiet
from tests.service.parts import Running, picture

ARCHITECTURE, SIZE = "imagenet_rnn_gate_18", 64
PHOTO = Path(__file__).parents[2] / "photos" / "rocket.jpg"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one network, trained for three steps a stage on photos of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for label in ("golf ball", "parachute"):
        (folder / "train" / label).mkdir(parents=True)
        for number in range(9):
            photo = picture(number + len(label), width=90 + number, height=70 + 3 * number)
            photo.save(folder / "train" / label / f"{number}.webp")
    options = JobOptions(
        arch=ARCHITECTURE,
        dataset="imagefolder",
        output=folder / "run",
        data=folder,
        recipe="budget",
        epochs=1,
        batch=4,
        size=SIZE,
        held_out=6,
    )
    job = make_job(options)
    # Three steps hardly train batch norm, and the recipes' own learning rates would be too high for it. Gates without
    # an initial bias and scale have probabilities near 0.5.
    gentle = replace(
        job, recipes=[replace(recipe, rate=1e-4, gate_bias_init=0, gate_logit_scale=1) for recipe in job.recipes]
    )
    trained = train(gentle, resume=False, save_every=300, show=quiet)
    checkpoint = read_checkpoint(trained)
    engine = load_engine(checkpoint, "reference", threads=1)
    chances = engine.run(photos(checkpoint), np.full(6, 0.5, np.float32)).probability
    # A threshold among the probabilities makes routes that differ.
    changes = {"execute_threshold": float(np.median(chances))}
    write_config(trained, checkpoint.config.model_copy(update=changes))
    return publish(trained, folder / "repository", ARCHITECTURE).parents[1]


def photos(checkpoint: Checkpoint) -> np.ndarray:
    return np.stack([prepare(picture(seed, 120, 90), checkpoint.config.input) for seed in range(6)])


@pytest.fixture
def checkpoint(repository: Path) -> Checkpoint:
    return read_checkpoint(repository / ARCHITECTURE / "1")


def test_its_checkpoint_describes_its_training(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    assert config.labels == ["golf ball", "parachute"]
    assert (config.input.resize, config.input.height) == (73, SIZE)
    assert [stage.stage for stage in config.training.stages] == ["sp", "hrl"]
    assert (config.training.train_images, config.training.validation_images) == (12, 6)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "native"])
def test_every_engine_gives_the_reference_output(checkpoint: Checkpoint, name: str) -> None:
    images = photos(checkpoint)
    thresholds = np.full(len(images), checkpoint.config.execute_threshold, np.float32)
    expected = load_engine(checkpoint, "reference", threads=1).run(images, thresholds)
    assert 0 < expected.executed.mean() < 1
    engine = load_engine(checkpoint, name, threads=1, routing="branch")
    try:
        result = engine.run(images, thresholds)
    finally:
        engine.close()
    np.testing.assert_array_equal(result.executed, expected.executed)
    np.testing.assert_allclose(result.logits, expected.logits, atol=1e-4)


def test_the_service_classifies_a_photo(repository: Path, checkpoint: Checkpoint) -> None:
    server = Running(Settings(model_repository=repository, engine="onnxruntime", routing="branch")).wait_ready()
    try:
        result = server.client.post("/classify", files={"image": PHOTO.read_bytes()}).raise_for_status().json()
    finally:
        server.stop()
    assert result["predictions"][0]["label"] in checkpoint.config.labels
    assert result["routing"]["blocks"] == 8
    assert result["routing"]["dense_macs"] == checkpoint.macs.dense
