"""`skipnet reproduce` and `skipnet report`, from the command line to results file, table and figure."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal

import pytest

from models.experiments.catalogue import all_groups
from models.experiments.results import read_results
from service.cli.main import main
from tests.models.data.parquet_files import read_images, write_parquet

TRAIN, HELD_OUT, TEST = 150, 20, 20


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, count in (("train", TRAIN), ("test", TEST)):
        pixels, labels = read_images("cifar10", split)
        write_parquet(tmp_path / "data" / f"{split}.parquet", pixels[:count], labels[:count].tolist())
    return tmp_path / "data"


def test_a_row_is_trained_reported_and_not_trained_again(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        f"reproduce cifar10 --rows plain --seeds 3 --epochs 1 --limit 128 --held-out {HELD_OUT} --compile off "
        f"--data {data} --output {tmp_path / 'runs'}"
    )
    main(line.split())
    output = capsys.readouterr().out
    assert "cifar10_38/short/plain-3: plain ResNet" in output and "| 1/1 [" in output and "test: accuracy" in output
    [result] = read_results([tmp_path / "runs" / "results"])
    # The command repeats the row. It does not contain the folder of the data.
    assert result.command == (
        f"skipnet reproduce cifar10 --schedule short --held-out {HELD_OUT} --epochs 1 --limit 128 "
        "--rows plain --seeds 3"
    )
    assert (result.train_images, result.validation_images, result.seed) == (128, HELD_OUT, 3)

    main(line.split())
    assert "1step" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*line.split(), "--epochs", "2"])
    assert "epochs=1" in capsys.readouterr().err

    main(["report", str(tmp_path / "runs" / "results"), "--output", str(tmp_path / "report")])
    table = capsys.readouterr().out
    assert "| cifar10_38 | `plain` | plain ResNet | 92.50 @ 100.0 (Table 2) |" in table
    assert (tmp_path / "report" / "table.md").read_text() == table
    assert ElementTree.parse(tmp_path / "report" / "curve.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_rows_are_shown_before_the_one_that_needs_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["reproduce", "cifar10", "--rows", "hrl-70", "--show-rows"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["plain", "sp", "hrl-70"]


@pytest.mark.parametrize("schedule", ["paper", "short"])
def test_rows_of_every_group_are_shown_by_default(
    capsys: pytest.CaptureFixture[str], schedule: Literal["paper", "short"]
) -> None:
    main(["reproduce", "cifar10", "--schedule", schedule, "--show-rows"])
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    groups = all_groups(schedule)
    assert shown == [name for group, rows in groups.items() for name in (f"{group}:", *(row.name for row in rows))]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (
            "reproduce cifar10 --rows best",
            1,
            "unknown row 'best'; expected one of table, ablations, recipe, grown, distilled-long, static,",
        ),
        ("reproduce cifar10 --seeds one", 2, "--seeds"),
        ("reproduce imagenet", 2, "DATASET (SKIPNET_DATASET): "),
        ("reproduce cifar10 --depth 39", 1, "unknown architecture 'cifar10_resnet_39'"),
        ("reproduce cifar10 --depth 39 --show-rows", 1, "unknown architecture 'cifar10_resnet_39'"),
        ("report nowhere", 1, "nowhere does not exist; `skipnet reproduce cifar10` writes results files"),
    ],
)
def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str], line: str, code: int, message: str) -> None:
    with pytest.raises(SystemExit) as leave:
        main(line.split())
    assert leave.value.code == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
