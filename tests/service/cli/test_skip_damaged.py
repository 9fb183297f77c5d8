"""`--skip-damaged` of `skipnet train` and `skipnet evaluate` on a folder with a damaged image."""

from pathlib import Path

import pytest

from models.checkpoint import read_config
from service.cli.main import main
from tests.models.data.test_image_folder import write_classes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        write_classes(tmp_path / split, cat=6, dog=6)
        (tmp_path / split / "cat" / "notes.txt").write_text("none")
        file = tmp_path / split / "dog" / "3.png"
        file.write_bytes(file.read_bytes()[:60])
    return tmp_path


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 1
    return capsys.readouterr().err


def test_damaged_images_are_named_or_left_out(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--arch", "cifar10_resnet_38", "--dataset", "imagefolder", "--data", str(data), "--size", "32"]
    train += ["--recipe", "short", "--epochs", "1", "--batch", "4", "--held-out", "3", "--compile", "off"]
    train += ["--output", str(data / "run")]
    assert failure(train, capsys).startswith(f"skipnet: {data}/train/dog/3.png cannot be read: ")
    main([*train, "--skip-damaged"])
    skipped = f"skipped by suffix: 1 (.txt 1); skipped as damaged: 1 ({data}/train/dog/3.png)"
    assert f"data: 11 images of 2 classes (cat, dog); {skipped}\n" in capsys.readouterr().out
    [checkpoint] = [file.parent for file in (data / "run").rglob("config.json")]
    assert read_config(checkpoint).training.train_images in (8, 9)

    evaluate = ["evaluate", str(checkpoint), "--data", str(data), "--engine", "torch"]
    assert failure(evaluate, capsys).startswith(f"skipnet: {data}/val/dog/3.png cannot be read: ")
    main([*evaluate, "--skip-damaged"])
    output = capsys.readouterr().out
    assert f"skipped as damaged: 1 ({data}/val/dog/3.png)" in output and "imagefolder test, 11 images" in output
