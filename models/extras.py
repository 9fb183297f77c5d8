"""Optional dependencies: the extras in pyproject.toml."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import UserError

DISTRIBUTION = "skipnet-serve"


def install_command(extra: str) -> str:
    """Return the shell command that installs an extra for this Python.

    In a checkout it installs from the checkout, since the package index may not have the distribution.
    """
    root = Path(__file__).resolve().parents[1]
    checkout = (root / "pyproject.toml").is_file()
    package = ["--editable", f"{root}[{extra}]"] if checkout else [f"{DISTRIBUTION}[{extra}]"]
    return shlex.join([sys.executable, "-m", "pip", "install", *package])


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Import the packages of an extra in this context; raises UserError with the install command if one is missing."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the extra {extra!r} ({error}); install it: {install_command(extra)}"
        ) from error
