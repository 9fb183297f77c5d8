"""Find the programs that tests run beside Python."""

import os
import shutil

import pytest


def program(name: str, package: str) -> str:
    """Return the path of a program. Without it, skip the test, or fail in CI."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        message = f"{name} is not installed; install Debian's package {package}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path
