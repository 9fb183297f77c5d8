"""Research data and reference cases, which the repository does not hold: found, or the test skips and says so."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("SKIPNET_SHARED", Path(__file__).parents[2] / "shared"))


def shared(relative: str) -> Path:
    """Return a file beside the checkout; skips the test where it is absent, which CI counts as a failure."""
    path = SHARED / relative
    if not path.exists():
        message = f"{relative} is not here; set SKIPNET_SHARED to the folder that holds it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path
