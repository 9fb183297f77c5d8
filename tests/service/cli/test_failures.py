"""Errors of the system and of libraries end a command with one line. Defects have a traceback."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from models.errors import UserError
from models.persistence.atomic_file import whole_file
from service.cli.failures import explain
from service.errors import not_ready

ROOT = Path(__file__).parents[3]
PHOTO = ROOT / "tests" / "photos" / "cat.jpg"
NOWHERE = Path("/proc/skipnet")
"""A folder that cannot be created."""


def skipnet(*arguments: str, output: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command as a process; ``output`` is a file for stdout."""
    command = [sys.executable, "-m", "service.cli.main", *arguments]
    with Path(output or os.devnull).open("wb") as file:
        stdout = file if output else subprocess.PIPE
        environ = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        return subprocess.run(command, env=environ, stdout=stdout, stderr=subprocess.PIPE, timeout=300)


def raised(run: Callable[[], object]) -> BaseException:
    try:
        run()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def open_file(path: Path) -> None:
    with path.open("wb"):
        pass


def write_whole() -> None:
    with whole_file(Path("/tmp") / f"skipnet-{os.getpid()}"):
        raise OSError(errno.ENOSPC, "No space left on device")


def load_cache() -> None:
    try:
        (Path.home() / ".cache").mkdir()
    except OSError as error:
        raise RuntimeError("the compiler failed") from error


def fail_like_safetensors() -> None:
    """Raise the error of safetensors for a full disk. A real write would replace the device file."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: torch.save({"a": torch.zeros(10**6)}, "/dev/full"), "no space left on the device: free some"),
        (fail_like_safetensors, "no space left on the device: free some"),
        # The names of the tests must be the same in all workers of a run, so they omit the process id.
        pytest.param(write_whole, f"/tmp/skipnet-{os.getpid()}: no space left on the device", id="write_whole"),
        (lambda: np.zeros((10**12, 10**3)), "out of memory (Unable to allocate"),
        (lambda: torch.zeros(10**15), "use a smaller batch or fewer images"),
        (lambda: open_file(NOWHERE / "a"), "/proc/skipnet/a: No such file or directory"),
        (lambda: (NOWHERE / ".cache").mkdir(), "set the variable HOME, here '/proc/skipnet', to a folder"),
        (load_cache, "set the variable HOME, here '/proc/skipnet', to a folder"),
        (lambda: __import__("pwd").getpwuid(2**31 - 5), "set the variable USER"),
    ],
)  # fmt: skip
def test_errors_of_system_and_libraries_say_what_to_do(
    run: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(NOWHERE))
    explained = explain(raised(run))
    assert explained is not None and message in explained and "\n" not in explained


@pytest.mark.parametrize("error", [UserError("do this"), not_ready("do this")])
def test_user_errors_are_shown_unchanged(error: Exception) -> None:
    assert explain(error) == "do this"


@pytest.mark.parametrize("error", [KeyError("row"), ValueError("x"), TypeError(), RuntimeError("expected scalar type")])
def test_defects_are_not_explained(error: Exception) -> None:
    assert explain(error) is None


def test_a_home_that_is_the_root_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers have it for users that are not in /etc/passwd."""
    monkeypatch.setenv("HOME", "/")
    explained = explain(PermissionError(errno.EACCES, "Permission denied", "/.cache/huggingface"))
    assert explained is not None and "set the variable HOME, here '/', to a folder" in explained


def test_a_terminal_without_unicode_gets_ascii() -> None:
    done = skipnet("classify", str(PHOTO), "--engine", "torch", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    output = done.stdout.decode("latin-1")
    assert "cat" in output and "#" in output and "\\u" not in output


def test_other_characters_become_escapes(tmp_path: Path) -> None:
    done = skipnet("classify", str(tmp_path / "猫.jpg"), PYTHONIOENCODING="latin-1")
    assert done.returncode == 1
    assert b"\\u732b.jpg: cannot be read: No such file" in done.stderr and b"Traceback" not in done.stderr


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    done = skipnet("--help", output="/dev/full")
    assert done.returncode == 1
    assert done.stderr == b"skipnet: no space left on the device: free some, or write to another folder\n"


def test_a_pipe_that_is_closed_early_is_not_an_error() -> None:
    """As `skipnet --help | head` does."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "service.cli.main", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
