"""`skipnet teach`, from the command line to a file of answers."""

from pathlib import Path

import pytest

from models.training.distillation import teacher as wide
from models.training.distillation.logits import read_answers
from service.cli.main import main
from tests.models.data.test_data import write_cifar10


def test_a_teacher_leaves_its_answers_and_is_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide, "BATCH", 8)
    (tmp_path / "data").mkdir()
    write_cifar10(tmp_path / "data", 40, 8)
    line = f"teach cifar10 --data {tmp_path / 'data'} --output {tmp_path / 'wide'} --epochs 1 --held-out 16"
    main(line.split())
    said = capsys.readouterr().out
    assert "3step" in said and f"answers: {tmp_path / 'wide' / 'answers.safetensors'}" in said
    written = read_answers(tmp_path / "wide" / "answers.safetensors", "cifar10", 40, 10)
    main(line.split())
    assert "3step" not in capsys.readouterr().out
    assert written.equal(read_answers(tmp_path / "wide" / "answers.safetensors", "cifar10", 40, 10))
    with pytest.raises(SystemExit):
        main(f"{line} --seed 1".split())
    assert "seed=0" in capsys.readouterr().err
