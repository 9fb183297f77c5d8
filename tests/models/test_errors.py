"""Missing optional packages: the error names a command that installs them."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import UserError, install_command, needs_extra

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


def test_docs_and_help_name_extras_by_a_command_that_works_in_a_checkout() -> None:
    """The package index may not have the distribution, so that `pip install skipnet-serve[…]` may fail."""
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "service").rglob("*.py")]
    assert not [str(text) for text in texts if "skipnet-serve[" in text.read_text("utf-8")]


USES = {
    "charts": ("analysis", "matplotlib", "models.plotting", "require_plotting()"),
    "correlation": ("analysis", "scipy", "models.analysis.routes", "rank_correlation([1], [2])"),
    "data sets": ("training", "datasets", "models.data.parquet", "import_datasets()"),
    "progress": ("training", "tqdm", "service.cli.training.options", "progress_bar(iter(()))"),
    "traces": ("tracing", "opentelemetry", "service.telemetry.tracing", "Tracing()"),
    "kernel": ("cuda", "cuda", "models.engines.persistent.build", "compile_kernel('rnn', 'sm_90')"),
}


@pytest.mark.parametrize(("extra", "package", "module", "call"), USES.values(), ids=USES)
def test_every_use_of_an_extra_names_its_command(extra: str, package: str, module: str, call: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from {module} import *; {call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert install_command(extra) in done.stderr.splitlines()[-1]
