"""Test that imports go from the service to the models, and in the models only to lower layers."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "": 0,
    "data": 1,
    "engines": 1,
    "evaluation": 2,
    "importing": 2,
    "cascade": 3,
    "training": 3,
    "experiments": 4,
    "analysis": 4,
    "benchmark": 5,
    "model_card": 5,
}
"""Layers of the packages in `models`. A package imports only lower ones. "" stands for the modules in no package."""


def imports(module: Path) -> Iterator[str]:
    """Yield the names of all modules that a file imports."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module} imports relatively"
            # `from models import machine` and `from models.machine import describe` both name models.machine.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(name: str) -> str:
    """Return the package of a module of `models`, as named in LAYERS."""
    part = name.split(".")[1]
    return part if (ROOT / "models" / part).is_dir() else ""


MODULES = sorted((ROOT / "models").rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_models_import_only_lower_layers(module: Path) -> None:
    own = package_of(".".join(module.relative_to(ROOT).parts))
    for name in imports(module):
        assert not name.startswith(("service", "deploy", "tests", "fastapi", "starlette", "uvicorn")), name
        if name.startswith("models."):
            assert package_of(name) == own or LAYERS[package_of(name)] < LAYERS[own], name


def test_every_package_of_models_has_a_layer() -> None:
    packages = {module.relative_to(ROOT / "models").parts[0] for module in MODULES if module.parent != ROOT / "models"}
    assert packages == set(LAYERS) - {""}
