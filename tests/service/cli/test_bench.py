"""`skipnet bench MODEL` measures the named model."""

import json
import re
from pathlib import Path

import pytest

from models import SHIPPED
from models.benchmark import timing
from models.checkpoint import read_config
from models.model_repository import find_version
from service.cli.main import main
from tests.models.data.test_data import write_cifar10

MODEL = "cifar10_rnn_gate_38"
FEW = ["--engines", "torch", "--batches", "2", "--seconds", "0.01"]


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WARM_UP", 1), ("TURN", 0), ("LEAST_ROUNDS", 2)):
        monkeypatch.setattr(timing, name, value)


def routings(table: str, network: str) -> list[str]:
    return re.findall(rf"^{network} +2 +1  (.+?)  +torch ", table, re.MULTILINE)


def test_a_model_is_measured_at_forced_shares_and_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["bench", MODEL, "--shares", "0", *FEW, "--output", str(tmp_path)])
    said = capsys.readouterr().out
    evaluation = read_config(find_version(SHIPPED, MODEL, None)).evaluation
    assert evaluation is not None
    own = f"{sum(evaluation.execution_rate) / len(evaluation.execution_rate):.0%}"
    assert f"{MODEL} executes {own} of its gated blocks on average; --data measures its decisions" in said
    assert routings(said, MODEL) == ["0% of the blocks", f"{own} of the blocks"]
    assert "ms per batch" in said and "images/s" not in said
    assert {row["architecture"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]} == {MODEL}
    assert "| ms per batch |" in (tmp_path / "table.md").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bench.json", "curve.svg", "table.md"]


def test_with_data_a_model_decides_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_cifar10(tmp_path, 2, 8)
    main(["bench", str(SHIPPED / MODEL), "--data", str(tmp_path), *FEW])
    assert routings(capsys.readouterr().out, MODEL) == ["own decisions"]


def test_an_architecture_has_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "svhn_feedforward_38", "--shares", "0.5", *FEW])
    assert routings(capsys.readouterr().out, "svhn_feedforward_38") == ["50% of the blocks"]


def test_an_unknown_name_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "resnet_of_mine", *FEW])
    said = capsys.readouterr()
    assert left.value.code == 1 and said.out == ""
    assert "holds no resnet_of_mine, but" in said.err and "cifar10_rnn_gate_38" in said.err
