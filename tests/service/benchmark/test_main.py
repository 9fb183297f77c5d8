"""The command line of the load test."""

import sys
from pathlib import Path

import pytest

from service.benchmark.__main__ import PARTS, main


def leave(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["service.benchmark", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def test_the_parts_are_in_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(monkeypatch, "--help") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert f"separated by commas: {', '.join(PARTS)}; default: all" in output


def test_an_unknown_part_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert leave(monkeypatch, "--only", "latency,speed", "--output", str(tmp_path / "load")) == 2
    assert "unknown part 'speed'; expected one of latency, " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
