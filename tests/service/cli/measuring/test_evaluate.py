"""`skipnet evaluate` on a copy of the shipped checkpoint and a few real images."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models import SHIPPED
from models.checkpoint import is_half, read_checkpoint, read_config, write_checkpoint
from models.errors import UserError
from models.evaluation.agreement import Agreement
from models.evaluation.precision import check_rounding
from models.model_repository import find_version
from service.cli.main import main
from tests.models.data.parquet_files import write_cifar10

PHOTO = Path(__file__).parents[3] / "photos" / "cat.jpg"
TEST, TRAIN = 24, 16


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint in float32, with weights that half precision rounds, not yet calibrated."""
    folder = Path(shutil.copytree(find_version(SHIPPED, "cifar10_rnn_gate_38", None), tmp_path / "checkpoint"))
    shipped = read_checkpoint(folder)
    with torch.no_grad():
        for weights in shipped.network.parameters():
            weights.mul_(1 + 1e-4)
        # The network is overconfident, so that the temperature is well inside its range.
        for weights in shipped.network.head.parameters():
            weights.mul_(10)
    training = shipped.config.training.model_copy(update={"temperature": None})
    write_checkpoint(folder, shipped.network, shipped.config.model_copy(update={"training": training}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar10")
    write_cifar10(folder, TRAIN, TEST)
    return folder


def evaluate(checkpoint: Path, data: Path, *options: str) -> None:
    main(["evaluate", str(checkpoint), "--data", str(data), "--engine", "reference", *options])


def test_written_figures_are_read_back(checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(checkpoint, data)
    assert "config.json says          accuracy 93.28%" in capsys.readouterr().out
    evaluate(checkpoint, data, "--write")
    evaluate(checkpoint, data)
    assert capsys.readouterr().out.endswith("as in config.json\n")
    evaluation = read_config(checkpoint).evaluation
    assert evaluation is not None and evaluation.images == TEST


def test_class_folders_are_matched_with_labels_by_name(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    for name in ("truck", "cat"):
        (images / "val" / name).mkdir(parents=True)
        shutil.copy(PHOTO, images / "val" / name)
    evaluate(checkpoint, images, "--dataset", "imagefolder", "--write")
    evaluation = read_config(checkpoint).evaluation
    assert evaluation is not None and evaluation.accuracy == 0.5
    assert evaluation.accuracy_per_class == {"cat": 1, "truck": 0}
    (images / "val" / "cat").rename(images / "val" / "kitten")
    with pytest.raises(SystemExit):
        evaluate(checkpoint, images, "--dataset", "imagefolder")
    assert "the class 'kitten' is none of the checkpoint's labels, which are airplane, " in capsys.readouterr().err


def test_half_precision_halves_the_file_and_keeps_the_outputs(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = checkpoint / "model.safetensors"
    before, size = read_checkpoint(checkpoint).network, weights.stat().st_size
    evaluate(checkpoint, data, "--half")
    assert weights.stat().st_size == size
    evaluate(checkpoint, data, "--half", "--write")
    assert f"on {TRAIN} validation images: 0.000% of the decisions flip" in capsys.readouterr().out
    assert weights.stat().st_size < 0.55 * size
    stored = load_file(weights)
    assert {value.dtype for value in stored.values() if value.ndim > 1} == {torch.float16}
    assert {value.dtype for value in stored.values() if value.ndim == 1} == {torch.float32}
    after = read_checkpoint(checkpoint)
    assert after.config.evaluation is not None and after.config.evaluation.images == TEST
    for (name, old), new in zip(before.named_parameters(), after.network.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-6, msg=name)


def test_temperature_scaling_is_printed_and_written_with_the_weights(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_checkpoint(checkpoint)
    evaluate(checkpoint, data, "--temper")
    assert read_config(checkpoint) == before.config
    evaluate(checkpoint, data, "--temper", "--write")
    after = read_checkpoint(checkpoint)
    scaled_by = after.config.training.temperature
    assert scaled_by is not None
    assert f"class logits are divided by {scaled_by:.3f}" in capsys.readouterr().out and scaled_by != 1
    torch.testing.assert_close(after.network.head.weight * scaled_by, before.network.head.weight, rtol=1e-3, atol=1e-6)
    assert "--temper --calibrate --write" in (checkpoint / "README.md").read_text()
    # A second run finds a temperature of 1, and the product of both is recorded.
    evaluate(checkpoint, data, "--temper", "--write")
    assert "class logits are divided by 1.000" in capsys.readouterr().out
    assert read_config(checkpoint).training.temperature == pytest.approx(scaled_by, rel=1e-3)


def test_temperature_scaling_keeps_half_precision(checkpoint: Path, data: Path) -> None:
    evaluate(checkpoint, data, "--half", "--write")
    size = (checkpoint / "model.safetensors").stat().st_size
    evaluate(checkpoint, data, "--temper", "--write")
    assert is_half(checkpoint) and (checkpoint / "model.safetensors").stat().st_size == size
    network = read_checkpoint(checkpoint).network
    torch.testing.assert_close(network.head.weight, network.head.weight.half().float(), rtol=0, atol=0)


def test_half_precision_that_changes_the_outputs_is_refused() -> None:
    def rounding(decisions: float, accuracy: float) -> Agreement:
        return Agreement(1000, decisions, labels=1.0, accuracy=accuracy, reference_accuracy=0.9)

    check_rounding(rounding(decisions=0.9995, accuracy=0.8995))
    with pytest.raises(UserError, match=r"0\.200% of the decisions flip"):
        check_rounding(rounding(decisions=0.998, accuracy=0.9))
    with pytest.raises(UserError, match=r"from 90.00% to 89.50%; keep float32"):
        check_rounding(rounding(decisions=1.0, accuracy=0.895))
