import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from models.cascade.config import read_cascade
from models.checkpoint import CheckpointError, is_cascade, read_checkpoint
from tests.models.cascade.conftest import FIRST, SECOND

Write = Callable[..., Path]


def test_a_cascade_is_read_with_its_stages(write: Write) -> None:
    cascade = read_cascade(write(margin=0.25, version=3))
    assert (cascade.name, cascade.version) == ("cascade", 3)
    assert [stage.name for stage in cascade.stages] == [FIRST, SECOND]
    assert cascade.thresholds == (0.5, 0.5, 0.25)
    assert [(place.start, place.stop) for place in cascade.columns] == [(0, 17), (17, 35)]
    assert cascade.dense_macs == cascade.stages[1].macs.dense


def test_a_checkpoint_is_not_a_cascade(write: Write, stages: Path, tmp_path: Path) -> None:
    assert is_cascade(write())
    assert not is_cascade(stages / FIRST / "1")
    assert not is_cascade(tmp_path)


@pytest.mark.parametrize("stage", [FIRST, SECOND])
def test_a_missing_stage_is_named(write: Write, tmp_path: Path, stage: str) -> None:
    shutil.copytree(write().parents[1], tmp_path / "repository")
    shutil.rmtree(tmp_path / "repository" / stage)
    with pytest.raises(CheckpointError, match=rf"{stage} version 1, is not in the repository"):
        read_cascade(tmp_path / "repository" / "cascade" / "1")


@pytest.mark.parametrize("stage", [FIRST, SECOND])
def test_a_damaged_stage_is_named(write: Write, tmp_path: Path, stage: str) -> None:
    shutil.copytree(write().parents[1], tmp_path / "repository")
    (tmp_path / "repository" / stage / "1" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=rf"{stage} version 1, cannot be used"):
        read_cascade(tmp_path / "repository" / "cascade" / "1")


def test_a_stage_with_other_labels_is_refused(write: Write) -> None:
    folder = write(version=4, labels=[f"class {index}" for index in range(10)])
    with pytest.raises(CheckpointError, match=f"{FIRST} version 1, differs in labels or input"):
        read_cascade(folder)


@pytest.mark.parametrize("margins", [[None, None], [0.2, 0.2], [None, 0.2]])
def test_all_stages_except_the_last_have_margins(write: Write, margins: list[float | None]) -> None:
    folder = write(version=5)
    config = json.loads((folder / "config.json").read_text())
    for stage, margin in zip(config["stages"], margins, strict=True):
        stage["margin"] = margin
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="every stage but the last needs a margin"):
        read_cascade(folder)


def test_a_cascade_is_not_a_checkpoint(write: Write) -> None:
    with pytest.raises(CheckpointError, match="is a cascade, which has several networks"):
        read_checkpoint(write())
