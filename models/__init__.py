"""SkipNet's networks: building, counting, training and running them. Knows nothing of HTTP."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "repository"
"""The model repository that comes with the code."""
