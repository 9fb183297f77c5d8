import subprocess
import sys
from pathlib import Path

import pytest

from service import cli
from service.cli.main import VERBS, main
from service.settings import Settings

PHOTO = Path(__file__).parents[2] / "photos" / "cat.jpg"


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    code: object = 0
    try:
        main(list(arguments))
    except SystemExit as leave:
        code = leave.code
    output = capsys.readouterr()
    return code, output.out, output.err


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
def test_the_error_for_malformed_keys_does_not_show_them(
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


def test_only_the_requested_verb_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['skipnet']; from service.cli.main import main; main(); print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.endswith("False\n")


def test_server_is_imported_without_torch_so_that_it_binds_its_socket_first() -> None:
    code = "import sys; import service.server; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output == "False\n"


def test_every_verb_has_a_module_and_every_module_a_verb() -> None:
    folder = Path(cli.__path__[0])
    modules = {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if "def cli_cmd" in path.read_text()
    }
    assert {module for module, _ in VERBS.values()} == modules
