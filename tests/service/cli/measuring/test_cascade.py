"""`skipnet cascade`, `evaluate` and `classify` with a cascade of two small networks, on the test's own images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.cascade.config import read_cascade
from service.cli.main import main
from tests.service.parts import LABELS, write_random

FIRST, LAST = "cifar10_rnn_gate_38", "cifar10_resnet_38"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder: twelve training images and four test images of each class."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for number, label in enumerate(LABELS):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 160, (32, 32, 3)) + 9 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / label / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for number, name in enumerate((FIRST, LAST)):
        write_random(folder / name / "1", number, name)
    build(folder, photos)
    return folder


def build(repository: Path, photos: Path, *options: str, last: str = LAST) -> None:
    stages = [str(repository / name / "1") for name in (FIRST, last)]
    data = ["--dataset", "imagefolder", "--data", str(photos), "--output", str(repository / "both")]
    main(["cascade", *stages, *data, "--engine", "torch", "--device", "cpu", *options])


def test_a_cascade_is_built_measured_and_gets_a_card(repository: Path) -> None:
    cascade = read_cascade(repository / "both" / "1")
    assert [(stage.model, stage.version) for stage in cascade.config.stages] == [(FIRST, 1), (LAST, 1)]
    assert cascade.config.evaluation is not None and cascade.config.evaluation.images == 40
    assert cascade.config.curve
    card = (repository / "both" / "1" / "README.md").read_text()
    assert f"top-1 {cascade.config.evaluation.accuracy:.2%}" in card


def test_the_next_build_is_the_next_version(repository: Path, photos: Path) -> None:
    build(repository, photos, "--escalate", "0.5", "--combination", "last")
    second = read_cascade(repository / "both" / "2")
    assert second.config.combination == "last"
    first = read_cascade(repository / "both" / "1")
    assert second.thresholds[2] > first.thresholds[2]


def test_execute_thresholds_of_the_stages_can_be_chosen(
    repository: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(repository, photos, "--execute-thresholds", "0.25,0.5")
    assert read_cascade(repository / "both" / "3").thresholds[:2] == (0.25, 0.5)
    assert "--execute-thresholds 0.25,0.5" in (repository / "both" / "3" / "README.md").read_text()
    with pytest.raises(SystemExit):
        build(repository, photos, "--execute-thresholds", "0.25")
    assert "2 stages need as many --execute-thresholds" in capsys.readouterr().err


def test_evaluate_measures_a_cascade_again(
    repository: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(repository, tmp_path / "repository")
    folder = tmp_path / "repository" / "both" / "1"
    config = json.loads((folder / "config.json").read_text())
    figures = config.pop("evaluation")
    (folder / "config.json").write_text(json.dumps(config))
    data = ["--dataset", "imagefolder", "--data", str(photos)]
    main(["evaluate", str(folder), *data, "--engine", "torch", "--device", "cpu", "--write"])
    assert "of the images escalated" in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text())["evaluation"] == figures


@pytest.mark.parametrize("option", [["--half"], ["--temper"], ["--execute-threshold", "0.5"]])
def test_evaluate_refuses_options_for_networks(
    repository: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", str(repository / "both" / "1"), *option])
    assert f"is a cascade: {option[0]} is for its stages" in capsys.readouterr().err


def test_evaluate_names_the_verb_that_compares_a_cascade(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", str(repository / "both" / "1"), "--calibrate"])
    assert "`skipnet frontier` compares it with its rivals" in capsys.readouterr().err


def test_classify_shows_the_stages(repository: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(photos / "val" / LABELS[0] / "0.png")
    options = ["--model-repository", str(repository), "--engine", "torch", "--device", "cpu", "--as-json"]
    for margin, stages in (("0", [FIRST]), ("1", [FIRST, LAST])):
        main(["classify", image, *options, "--model", "both", "--min-margin", margin])
        routing = json.loads(capsys.readouterr().out)["routing"]
        assert [stage["model"] for stage in routing["stages"]] == stages


@pytest.mark.parametrize("verb", ["analyze", "export"])
def test_verbs_for_networks_refuse_a_cascade(
    repository: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
) -> None:
    folder = str(repository / "both" / "1")
    output = str(tmp_path / "output")
    rest = [output] if verb == "export" else [str(tmp_path), "--output", output]
    with pytest.raises(SystemExit):
        main([verb, folder, *rest])
    assert "is a cascade, which has several networks" in capsys.readouterr().err


def test_stages_of_another_repository_are_refused(
    repository: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stages = [str(repository / name / "1") for name in (FIRST, LAST)]
    with pytest.raises(SystemExit):
        main(["cascade", *stages, "--data", str(photos), "--output", str(tmp_path / "elsewhere" / "both")])
    assert "must be in the repository of --output" in capsys.readouterr().err
