import json
import subprocess
import sys
from pathlib import Path
from pkgutil import iter_modules

import pytest

from service import commands
from service.cli import VERBS, main
from service.settings import Settings
from tests.service.parts import LABELS, NAME, encoded, picture

PHOTO = Path(__file__).parents[1] / "photos" / "cat.jpg"


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    code: object = 0
    try:
        main(list(arguments))
    except SystemExit as leave:
        code = leave.code
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_overview_has_a_line_for_every_verb(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, text, _ = outcome(capsys, *arguments)
    assert code == 0
    for verb in VERBS:
        assert any(line.split()[:1] == [verb] and len(line.split()) > 3 for line in text.splitlines())


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = outcome(capsys, "srve")
    assert code == 2
    assert error.startswith("skipnet: no verb 'srve'; one of serve, ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("value", ["http", "70000", "-1"])
def test_wrong_option_is_one_line_that_names_flag_and_variable(capsys: pytest.CaptureFixture[str], value: str) -> None:
    code, _, error = outcome(capsys, "serve", f"--port={value}")
    assert code == 2
    assert error.startswith("skipnet: --port (SKIPNET_PORT): ")
    assert error.count("\n") == 1


def test_wrong_variable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPNET_ENGINE", "steam")
    code, _, error = outcome(capsys, "serve")
    assert code == 2
    assert "SKIPNET_ENGINE" in error
    assert "steam" in error


@pytest.mark.parametrize("value", ["my-secret", '"my-secret"', '{"my-secret": 1}', "[987654]", ""])
def test_keys_that_are_no_list_of_texts_are_told_without_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SKIPNET_API_KEYS", value)
    code, _, error = outcome(capsys, "serve")
    assert code == 2
    assert "SKIPNET_API_KEYS" in error and "JSON list" in error
    assert "secret" not in error and "987654" not in error


def test_help_of_serve_names_every_setting_its_variable_and_what_it_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, text, _ = outcome(capsys, "serve", "--help")
    assert code == 0
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert f"SKIPNET_{name.upper()}" in text
        assert field.description


def test_flag_wins_over_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPNET_PORT", "1111")
    assert Settings().port == 1111
    assert Settings(_cli_parse_args=["--port", "2222"]).port == 2222


def test_only_the_asked_verb_is_imported() -> None:
    code = "import sys; sys.argv = ['skipnet']; import service.cli; service.cli.main(); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.endswith("False\n")


def test_server_is_imported_without_torch_so_that_it_binds_its_socket_first() -> None:
    code = "import sys; import service.server; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said == "False\n"


def test_every_verb_has_a_module_and_every_module_a_verb() -> None:
    assert {module for module, _ in VERBS.values()} == {module.name for module in iter_modules(commands.__path__)}


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(picture(i), "JPEG"))
    return [str(tmp_path / f"{i}.jpg") for i in range(2)]


def options(repository: Path) -> list[str]:
    return ["--model-repository", str(repository), "--engine", "reference", "--threads", "1"]


def test_classify_shows_label_and_blocks(
    capsys: pytest.CaptureFixture[str], repository: Path, photos: list[str]
) -> None:
    code, text, _ = outcome(capsys, "classify", *photos, *options(repository))
    assert code == 0
    lines = text.splitlines()
    assert len(lines) == 4
    for photo, named, drawn in zip(photos, lines[::2], lines[1::2], strict=True):
        assert named.startswith(f"{photo}: ")
        assert named.split()[1] in LABELS
        marks = drawn.split()[0]
        assert len(marks) == 18
        assert f"{marks.count('░')} of 18 blocks skipped" in drawn


def test_classify_as_json(capsys: pytest.CaptureFixture[str], repository: Path, photos: list[str]) -> None:
    code, text, _ = outcome(
        capsys, "classify", photos[0], *options(repository), "--as-json", "--top-k=3", "--execute-threshold=1"
    )
    assert code == 0
    answer = json.loads(text)
    assert len(answer["predictions"]) == 3
    assert answer["routing"]["skipped"] == 17
    assert len(answer["routing"]["decisions"]) == 17


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (["--model", "nobody"], f"holds no nobody, but {NAME}"),
        (["--version", "7"], f"holds no {NAME} version 7"),
        (["--model", "../x"], "can't be a model's name"),
        (["--model-repository", "/nowhere"], "holds no model"),
    ],
)
def test_classify_with_a_model_that_is_not_there(
    capsys: pytest.CaptureFixture[str], repository: Path, photos: list[str], extra: list[str], reason: str
) -> None:
    code, _, error = outcome(capsys, "classify", photos[0], *options(repository), *extra)
    assert code == 1
    assert reason in error
    assert error.count("\n") == 1


def test_classify_what_is_no_image(capsys: pytest.CaptureFixture[str], repository: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for file, reason in (("a.txt", "not an image"), ("b.jpg", "can't be read: No such file"), ("", "Is a directory")):
        code, _, error = outcome(capsys, "classify", str(tmp_path / file), *options(repository))
        assert code == 1
        assert file in error
        assert reason in error and "Errno" not in error
        assert error.splitlines()[1:] == ["skipnet: 1 of 1 images could not be classified"]


def test_classify_goes_on_after_a_file_that_is_no_image(
    capsys: pytest.CaptureFixture[str], repository: Path, tmp_path: Path, photos: list[str]
) -> None:
    (tmp_path / "a.txt").write_text("text")
    code, text, error = outcome(capsys, "classify", photos[0], str(tmp_path / "a.txt"), photos[1], *options(repository))
    assert code == 1
    assert [line.partition(": ")[0] for line in text.splitlines()[::2]] == [photos[0], photos[1]]
    assert error.splitlines()[1:] == ["skipnet: 1 of 3 images could not be classified"]


def test_classify_within_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["classify", str(PHOTO), "--engine", "torch", "--routing", "branch", "--as-json", "--compute-budget"]
    spent = [json.loads(outcome(capsys, *line, budget)[1])["routing"]["macs"] for budget in ("0.4", "1")]
    assert spent[0] < spent[1]
    code, _, error = outcome(capsys, *line, "0.01")
    assert code == 1 and "compute_budget 0.01 can't be met" in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("serve --device tpu", "--device (SKIPNET_DEVICE): 'tpu' does not fit: auto, cpu, cuda or cuda:N"),
        ("bench --parts nope", "--parts (SKIPNET_PARTS): 'nope' does not fit: what to measure: engines, training or"),
        ("bench --batches 1,0", "--batches (SKIPNET_BATCHES): '1,0' does not fit: batch sizes, for instance"),
        ("verify-gpu --shares 2", "--shares (SKIPNET_SHARES): '2' does not fit: forced shares"),
        ("reproduce cifar10 --seeds x", "--seeds (SKIPNET_SEEDS): 'x' does not fit: seeds, separated by commas"),
        ("reproduce mnist", "DATASET (SKIPNET_DATASET): Input should be 'cifar10', "),
    ],
)
def test_what_does_not_fit_is_told_in_words(capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    code, _, error = outcome(capsys, *line.split())
    assert code == 2
    assert error.startswith(f"skipnet: {message}") and error.count("\n") == 1
