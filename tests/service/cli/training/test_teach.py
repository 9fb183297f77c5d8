"""`skipnet teach`, from the command line to a file of teacher logits."""

from pathlib import Path

import pytest

from models.training.distillation import training as teacher_training
from models.training.distillation.logits import read_teacher_logits
from service.cli.main import main
from tests.models.data.parquet_files import write_cifar10


def test_a_teacher_writes_its_logits_and_is_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_training, "BATCH", 8)
    (tmp_path / "data").mkdir()
    write_cifar10(tmp_path / "data", 40, 8)
    line = f"teach cifar10 --data {tmp_path / 'data'} --output {tmp_path / 'teacher'} --epochs 1 --held-out 16"
    main(line.split())
    output = capsys.readouterr().out
    assert "| 3/3 [" in output and f"teacher logits: {tmp_path / 'teacher' / 'teacher_logits.safetensors'}" in output
    written = read_teacher_logits(tmp_path / "teacher" / "teacher_logits.safetensors", "cifar10", 40, 10)
    main(line.split())
    assert "3step" not in capsys.readouterr().out
    assert written.equal(read_teacher_logits(tmp_path / "teacher" / "teacher_logits.safetensors", "cifar10", 40, 10))
    with pytest.raises(SystemExit):
        main(f"{line} --seed 1".split())
    assert "seed=0" in capsys.readouterr().err
