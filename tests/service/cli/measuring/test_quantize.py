"""`skipnet quantize` writes a version that the engine native_int16 runs, and refuses one that differs too much."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from models import SHIPPED
from models.checkpoint import read_checkpoint, read_config, write_config
from models.engines import load_engine
from models.engines.protocol import EngineError
from models.model_repository import find_version
from service.cli.main import main
from tests.models.data.parquet_files import write_cifar10

VALIDATION = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar10")
    write_cifar10(folder, 16, 4)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint as version 3 of a model, with few validation images."""
    folder = tmp_path / "small" / "3"
    shutil.copytree(find_version(SHIPPED, "cifar10_rnn_gate_38", None), folder)
    config = read_config(folder)
    training = config.training.model_copy(update={"validation_images": VALIDATION})
    write_config(folder, config.model_copy(update={"training": training}))
    return folder


def quantize(checkpoint: Path, data: Path, *options: str) -> None:
    main(["quantize", str(checkpoint), "--data", str(data), "--calibration-images", "8", *options])


@pytest.mark.parametrize("link", [False, True])
def test_the_next_version_runs_in_integers(
    checkpoint: Path, data: Path, link: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(checkpoint, data, "--most-decisions", "10", *(["--link"] if link else []))
    written = checkpoint.with_name("4")
    assert f"{written}: on 4 validation images" in capsys.readouterr().out
    assert (written / "model.safetensors").is_symlink() == link
    card = (written / "README.md").read_text()
    assert card.startswith("# cifar10_rnn_gate_38, version 4") and "## In 16-bit integers" in card
    quantized = read_checkpoint(written)
    images = 0.5 * np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    thresholds = np.zeros(2, np.float32)
    outputs = {}
    for name in ("native_int16", "native", "onnxruntime"):
        engine = load_engine(quantized, name, "cpu", threads=1, routing="branch")
        outputs[name] = engine.run(images, thresholds).logits
        assert engine.name == name
        engine.close()
    np.testing.assert_allclose(outputs["native"], outputs["onnxruntime"], atol=1e-3)
    assert 0 < np.abs(outputs["native_int16"] - outputs["native"]).max() < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calibration-images", "12"), "leave none of the 12 validation images"),
        (("--output", "{there}"), "exists already"),
    ],
)
def test_invalid_options_are_refused(
    checkpoint: Path, data: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        quantize(checkpoint, data, *(option.format(there=checkpoint) for option in options))
    assert message in capsys.readouterr().err
    assert not checkpoint.with_name("4").exists()


def test_a_version_that_differs_too_much_is_refused(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Limits that clip most activations.
    monkeypatch.setattr("models.engines.native.activation_limits.HEADROOM", 0.01)
    with pytest.raises(SystemExit):
        quantize(checkpoint, data)
    assert "of the decisions change; the limits are a loss of 0.3 points and 1.00%" in capsys.readouterr().err
    assert not checkpoint.with_name("4").exists()


def test_other_versions_have_no_integers(checkpoint: Path) -> None:
    with pytest.raises(EngineError, match="skipnet quantize"):
        load_engine(read_checkpoint(checkpoint), "native_int16", "cpu", threads=1)
