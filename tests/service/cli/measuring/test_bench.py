"""`skipnet bench MODEL` measures the named model."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from models import SHIPPED
from models.benchmark import timing
from models.cascade.config import CascadeConfig, Stage, write_cascade_config
from models.checkpoint import code_version, read_checkpoint, read_config
from models.model_repository import find_version
from service.cli.main import main
from tests.models.data.parquet_files import write_cifar10
from tests.service.parts import write_random

MODEL = "cifar10_rnn_gate_38"
FEW = ["--engines", "torch", "--batches", "2", "--seconds", "0.01", "--no-others"]


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WARM_UP", 1), ("TURN", 0), ("LEAST_ROUNDS", 2)):
        monkeypatch.setattr(timing, name, value)


def routings(table: str, network: str) -> list[str]:
    return re.findall(rf"^{network} +2 +1  (.+?)  +torch ", table, re.MULTILINE)


def test_a_model_is_measured_at_forced_shares_and_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["bench", MODEL, "--shares", "0", *FEW, "--output", str(tmp_path)])
    output = capsys.readouterr().out
    evaluation = read_config(find_version(SHIPPED, MODEL, None)).evaluation
    assert evaluation is not None
    own = f"{sum(evaluation.execution_rate) / len(evaluation.execution_rate):.0%}"
    assert f"{MODEL} executes {own} of its gated blocks on average; --data measures its decisions" in output
    assert routings(output, MODEL) == ["0% of the blocks", f"{own} of the blocks"]
    assert "ms per batch" in output and "images/s" not in output
    assert {row["architecture"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]} == {MODEL}
    assert "| ms per batch |" in (tmp_path / "table.md").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bench.json", "curve.svg", "table.md"]


def test_with_data_a_model_uses_its_own_decisions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_cifar10(tmp_path, 2, 8)
    main(["bench", str(SHIPPED / MODEL), "--data", str(tmp_path), *FEW])
    assert routings(capsys.readouterr().out, MODEL) == ["own decisions"]


def test_an_architecture_has_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "svhn_feedforward_38", "--shares", "0.5", *FEW])
    assert routings(capsys.readouterr().out, "svhn_feedforward_38") == ["50% of the blocks"]


def test_an_unknown_name_is_refused_before_the_measurements(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "resnet_of_mine", *FEW])
    output = capsys.readouterr()
    assert left.value.code == 1 and output.out == ""
    assert "holds no resnet_of_mine, but" in output.err and "cifar10_rnn_gate_38" in output.err


def test_a_cascade_is_measured_beside_its_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = "cifar10_rnn_gate_38", "cifar10_resnet_38"
    for seed, name in enumerate((first, last)):
        write_random(tmp_path / "repository" / name / "1", seed, name)
    known = read_checkpoint(tmp_path / "repository" / first / "1").config
    stages = (
        Stage(model=first, version=1, execute_threshold=0.5, temperature=1000, margin=1.0),
        Stage(model=last, version=1, execute_threshold=0.5),
    )
    config = CascadeConfig(stages=stages, labels=known.labels, input=known.input, code=code_version())
    write_cascade_config(tmp_path / "repository" / "both" / "1", config)
    for label in known.labels:
        (tmp_path / "photos" / "val" / label).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "val" / label / "black.png")
    data = ["--dataset", "imagefolder", "--data", str(tmp_path / "photos")]
    names = ["both", "--model-repository", str(tmp_path / "repository")]
    main(["bench", *names, *data, "--batches", "2", "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "both.json").read_text())["rows"]
    rows = {row["system"]: row for row in found}
    assert set(rows) > {"cascade", f"{first} alone", f"{last} alone"}
    [dense] = [row for name, row in rows.items() if name.startswith("dense, ")]
    assert dense["wall_share"] == 1 and dense["mac_share"] == 1
    # A margin of 1 escalates every image, so that both stages run.
    assert rows["cascade"]["mac_share"] == pytest.approx(rows[f"{first} alone"]["mac_share"] + 1)
    assert all(0 < row["p50"] <= row["p99"] for row in found)
    assert "| cascade | 2, 1 | " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["bench", *names])
    assert "a cascade is measured on images of its data set" in capsys.readouterr().err
