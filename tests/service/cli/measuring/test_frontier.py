"""`skipnet frontier` with a cascade of two small networks, on the test's own images."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from models.cascade.config import CascadeConfig, Stage, write_cascade_config
from models.checkpoint import code_version, read_checkpoint
from service.cli.main import main
from tests.service.parts import LABELS, write_random

FIRST, LAST, RIVAL = "cifar10_rnn_gate_38", "cifar10_resnet_38", "cifar10_resnet_20"
MARGINS = 19


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with four test images of each class."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, label in enumerate(LABELS):
        for split in ("train", "val"):
            (folder / split / label).mkdir(parents=True)
            for index in range(4):
                pixels = random.integers(0, 160, (32, 32, 3)) + 9 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / label / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for number, name in enumerate((FIRST, LAST, RIVAL)):
        write_random(folder / name / "1", number, name)
    first = read_checkpoint(folder / FIRST / "1").config
    stages = (
        Stage(model=FIRST, version=1, execute_threshold=0.5, margin=0.5),
        Stage(model=LAST, version=1, execute_threshold=0.5),
    )
    config = CascadeConfig(stages=stages, labels=first.labels, input=first.input, code=code_version())
    write_cascade_config(folder / "both" / "1", config)
    return folder


@pytest.fixture(scope="module")
def output(repository: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    cascade, rival = (str(repository / name / "1") for name in ("both", RIVAL))
    data = ["--dataset", "imagefolder", "--data", str(photos), "--engine", "torch", "--device", "cpu"]
    main(["frontier", cascade, "--rivals", rival, "--budgets", "60", *data, "--output", str(folder)])
    return folder


def test_the_file_holds_every_system_at_every_margin(output: Path) -> None:
    found = json.loads((output / "frontier.json").read_text())
    assert found["images"] == 40 and found["machine"]["torch"]
    points = found["points"]
    firsts = [FIRST, f"{FIRST}, fixed route", RIVAL]
    assert [point["system"] for point in points[:4]] == [*firsts, LAST]
    for first in firsts:
        own = [point for point in points if point["system"] == f"{first} -> {LAST}"]
        assert len(own) == MARGINS
        for name in ("margin", "escalated", "macs"):
            values = [point[name] for point in own]
            assert values == sorted(values)
    assert own[-1]["escalated"] > own[0]["escalated"]


def test_the_cost_of_a_cascade_is_that_of_both_stages(output: Path) -> None:
    found = json.loads((output / "frontier.json").read_text())["points"]
    points = {(point["system"], point["margin"]): point for point in found}
    for first in (RIVAL, f"{FIRST}, fixed route"):
        both = points[f"{first} -> {LAST}", 0.5]
        expected = points[first, 0.0]["macs"] + both["escalated"] * points[LAST, 0.0]["macs"]
        assert both["macs"] == pytest.approx(expected)


def test_systems_within_a_budget_keep_it(output: Path) -> None:
    tables = (output / "frontier.md").read_text()
    rows = [line.split(" | ") for line in tables.splitlines() if line.startswith("| 60 M | ")]
    assert rows and all(float(row[4].split()[0]) <= 60 for row in rows)
    assert any(row[1] == RIVAL for row in rows)


def test_the_chart_names_every_cascade(output: Path) -> None:
    text = "".join(ElementTree.parse(output / "frontier.svg").getroot().itertext())
    assert f"{FIRST} -> {LAST}" in text and f"{RIVAL} -> {LAST}" in text and "each network alone" in text


def test_a_network_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["frontier", str(repository / FIRST / "1")])
    assert "is not a cascade" in capsys.readouterr().err
