"""`skipnet analyze` writes a self-contained report."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import SHIPPED
from models.analysis.schema import read_analysis
from models.architectures import find_architecture
from models.checkpoint import Config, FixedRoute, write_checkpoint
from models.model_repository import find_version
from service.cli.main import main
from tests.models.data.parquet_files import write_parquet
from tests.service.parts import LABELS, SPEC, picture

CHECKPOINT = find_version(SHIPPED, "cifar10_rnn_gate_38", None)
IMAGES = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pixels = np.stack([np.asarray(picture(seed, 32, 32)) for seed in range(IMAGES)])
    write_parquet(folder / "test.parquet", pixels, [number % 10 for number in range(IMAGES)])
    return folder


def test_the_report(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / CHECKPOINT.parent.name / "1"))
    output = tmp_path / "report"
    few = ["--altered", "8", "--attacked", "2", "--engine", "onnxruntime"]
    main(["analyze", str(folder), str(data), "--output", str(output), "--write", *few])
    assert "30 images of cifar10, engine onnxruntime" in capsys.readouterr().out
    found = json.loads((output / "analysis.json").read_text())
    assert sum(found["histogram"]) == found["images"] == IMAGES
    assert found["mean_blocks"] == pytest.approx(np.average(range(19), weights=found["histogram"]), abs=1e-3)
    assert sum(found["execution_rate"]) == pytest.approx(found["mean_blocks"], abs=0.01)
    assert found["groups"] == [0] * 6 + [1] * 6 + [2] * 6
    assert [row["name"] for row in found["altered"]] == ["scale", "brightness", "contrast", "blur"]
    assert (found["altered_images"], found["attacks"][0]["images"]) == (8, 2)
    # The images execute 8 to 9 gated blocks on average; a route has no gates to pay for.
    fixed = found["fixed_routes"]
    mean = int(found["mean_blocks"] - 1)
    assert [route["blocks"] for route in fixed] == [mean - 1, mean, mean + 1]
    assert fixed[0]["macs"] < fixed[1]["macs"] < found["macs"]
    for route in fixed:
        assert route["gain"] == pytest.approx(found["accuracy"] - route["accuracy"], abs=2e-4)

    charts = {file.stem: file.read_text() for file in output.glob("*.svg")}
    assert {
        "blocks",
        "classes",
        "rates",
        "paths",
        "appearance",
        "scale",
        "blur",
        "flips",
        "benefit",
        "attacks",
        "budget",
    } <= set(charts)
    for chart in charts.values():
        ElementTree.fromstring(chart)
    page = (output / "report.html").read_text()
    assert page.count("data:image/svg+xml") == len(charts)
    # The page has no external links: no URL, no script, and every picture is embedded.
    assert "://" not in page
    assert "<script" not in page and not re.findall(r'(?:src|href)="(?!data:image/)', page)
    assert "width=device-width" in page and "prefers-color-scheme:dark" in page and "@media print" in page
    assert page.count("<td>{:.2f} M</td>".format(fixed[1]["macs"] / 1e6)) == 1
    with Image.open(output / "least.png") as sheet:
        assert sheet.width > 600

    listed = (output / "README.md").read_text()
    assert all((output / name).is_file() for name in re.findall(r"\((\w+\.svg)\)", listed))
    assert listed.count(".svg") == len(charts) and "dogs are hard, trucks easy" in listed

    written = read_analysis(folder)
    assert written is not None and written.images == IMAGES
    assert written.fixed_routes == [FixedRoute(**route) for route in fixed]
    assert "a fixed route of its cost" in listed and listed.count(f"| {mean} |") == 1
    assert "Routes of 30 test images" in (folder / "README.md").read_text()


def test_a_report_to_publish_shows_no_image_of_the_data_set(data: Path, tmp_path: Path) -> None:
    few = ["--images", "4", "--altered", "2", "--attacked", "0", "--engine", "onnxruntime"]
    main(["analyze", str(CHECKPOINT), str(data), "--output", str(tmp_path), "--no-photos", *few])
    assert not list(tmp_path.glob("*.png"))
    assert "data:image/webp" not in (tmp_path / "report.html").read_text()


def test_network_without_gates_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "cifar10_resnet_38"
    config = Config(architecture=name, labels=LABELS, input=SPEC, training={"dataset": "cifar10"}, code="test")
    write_checkpoint(tmp_path / "plain", find_architecture(name).build(), config)
    with pytest.raises(SystemExit) as left:
        main(["analyze", str(tmp_path / "plain"), str(data), "--output", str(tmp_path / "out")])
    assert left.value.code == 1
    assert "has no gates" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
