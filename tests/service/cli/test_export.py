"""`skipnet export` writes a file that another runtime can run."""

import errno
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from models.architectures import find_architecture
from models.checkpoint import Config, write_checkpoint
from models.preprocessing import InputSpec
from service.cli.main import main

ARCHITECTURE = "cifar10_rnn_gate_38"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    spec = InputSpec(height=32, width=32, resize=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    config = Config(architecture=ARCHITECTURE, labels=list("abcdefghij"), input=spec, code="tests")
    network = find_architecture(ARCHITECTURE).build()
    for version in ("2", "10"):
        write_checkpoint(folder / "little" / version, network, config)
    return folder


def test_newest_version_by_name(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "network.onnx"
    main(["export", "little", str(output), "--model-repository", str(repository)])
    assert "little version 10" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    inputs = {"images": np.zeros((1, 3, 32, 32), np.float32), "thresholds": np.zeros(1, np.float32)}
    logits, probabilities, executed = session.run(["logits", "probabilities", "executed"], inputs)
    assert logits.shape == (1, 10)
    assert probabilities.shape == (1, 17)
    assert executed.all()


def test_folder_and_batches(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "network.onnx"
    main(["export", str(repository / "little/2"), str(output), "--routing", "mask"])
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    inputs = {"images": np.zeros((3, 3, 32, 32), np.float32), "thresholds": np.ones(3, np.float32)}
    assert not session.run(["executed"], inputs)[0].any()


def test_a_models_folder_gives_its_newest_version(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "network.onnx"
    main(["export", str(repository / "little"), str(output)])
    assert "little version 10" in capsys.readouterr().out
    main(["export", str(repository / "little"), str(output), "--version", "2"])
    assert "little version 2" in capsys.readouterr().out


def test_missing_model(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wanted in (["large"], ["little", "--version", "3"]):
        with pytest.raises(SystemExit) as left:
            main(["export", *wanted, str(tmp_path / "network.onnx"), "--model-repository", str(repository)])
        assert left.value.code == 1
        assert f"holds no {wanted[0]}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_takes_no_version(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(repository / "little/2"), str(tmp_path / "network.onnx"), "--version", "10"])
    assert left.value.code == 1
    assert "little/2 is the folder of a version: leave --version out, or give the model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_or_a_missing_parent_is_an_error(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    for output, message in (
        (tmp_path / "folder", f"skipnet: {tmp_path / 'folder'} is a folder: name the file to write"),
        (tmp_path / "none" / "a.onnx", f"skipnet: there is no folder {tmp_path / 'none'} to write a.onnx into"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["export", str(repository / "little/2"), str(output)])
        assert left.value.code == 1
        assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.rglob("*")] == ["folder"]


def test_a_failed_write_leaves_no_file(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("models.persistence.atomic_file.os.fsync", full)
    with pytest.raises(SystemExit):
        main(["export", str(repository / "little/2"), str(tmp_path / "network.onnx")])
    assert not list(tmp_path.iterdir())
