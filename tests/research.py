"""Find research data and reference cases outside of the repository."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("SKIPNET_SHARED", Path(__file__).parents[2] / "shared"))


def shared(relative: str) -> Path:
    """Return the path of a shared file. If it is missing, skip the test, or fail in CI."""
    path = SHARED / relative
    if not path.exists():
        message = f"{relative} is missing; set SKIPNET_SHARED to the folder that contains it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path
