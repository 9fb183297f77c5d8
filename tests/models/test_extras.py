"""Missing optional packages: the error names a command that installs them."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import UserError
from models.extras import install_command, needs_extra

ROOT = Path(__file__).parents[2]


def test_missing_package_names_extra_and_command() -> None:
    message = r"drawing needs the extra 'analysis' .*no_such_package.*pip install"
    with pytest.raises(UserError, match=message), needs_extra("analysis", "drawing"):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401


def test_command_works_in_a_checkout(tmp_path: Path) -> None:
    """pip resolves the command's target, here without its dependencies, from any directory."""
    command = shlex.split(install_command("analysis"))
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == f"{ROOT}[analysis]"
    subprocess.run(
        [*command, "--dry-run", "--no-deps", "--no-build-isolation", "--quiet"],
        cwd=tmp_path, check=True, capture_output=True, timeout=300,
    )  # fmt: skip


def test_bench_and_analyze_name_the_command_where_matplotlib_is_missing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; from service.cli.main import main;"
        f"main(['report', 'docs/results', '--output', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("skipnet: drawing charts needs the extra 'analysis'")
    assert install_command("analysis") in done.stderr
