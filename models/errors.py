"""Errors that a user can correct, and the error for a missing extra of pyproject.toml."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISTRIBUTION = "skipnet-serve"


class UserError(Exception):
    """An error that the user can correct. The message says what is wrong and what to do.

    The command line prints it as one line and exits with 1. Subclass it only where code catches the subclass by name.
    """


def install_command(extra: str) -> str:
    """Return the shell command that installs an extra for this Python.

    In a checkout it installs from the checkout, because the package index may not have the distribution.
    """
    root = Path(__file__).resolve().parents[1]
    checkout = (root / "pyproject.toml").is_file()
    package = ["--editable", f"{root}[{extra}]"] if checkout else [f"{DISTRIBUTION}[{extra}]"]
    return shlex.join([sys.executable, "-m", "pip", "install", *package])


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Import the packages of an extra inside the `with` statement.

    Raises UserError with the install command if one is missing.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the extra {extra!r} ({error}); install it: {install_command(extra)}"
        ) from error
