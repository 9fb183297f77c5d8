"""Imports have one direction and no circles, and folders and modules are small."""

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "persistence": -1,
    "": 0,
    "images": 1,
    "remote": 1,
    "data": 2,
    "engines": 2,
    "evaluation": 3,
    "importing": 3,
    "cascade": 4,
    "training": 4,
    "experiments": 5,
    "analysis": 5,
    "benchmark": 6,
    "model_card": 6,
    "finetuning": 7,
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


SOURCES = {".py", ".cpp", ".hpp", ".cu", ".cuh"}
MOST_FILES, MOST_LINES = 14, 320
FILES = sorted(path for package in ("models", "service") for path in (ROOT / package).rglob("*.py"))
TREE = sorted(
    path
    for package in ("models", "service", "deploy", "tests")
    for path in (ROOT / package).rglob("*")
    if path.suffix in SOURCES
)


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def run_time_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports below a node, also those in functions, except those for type checking only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from run_time_imports(other)
        else:
            yield from run_time_imports(child)


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return the modules that each module imports, from the source of every module by name."""
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        graph[name] = set()
        for node in run_time_imports(ast.parse(source)):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                members = [f"{node.module}.{member}" for member in names]
                names = [member if member in sources else str(node.module) for member in members]
            graph[name] |= (set(names) & sources.keys()) - {name}
    return graph


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import circle, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_there_is_no_import_circle() -> None:
    assert find_circle(import_graph({module_name(file): file.read_text() for file in FILES})) == []


def test_an_import_circle_is_found() -> None:
    checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import x"
    sources = {"p.a": "import p.b", "p.b": "def f():\n    from p import c", "p.c": "from p.a import x", "p.d": checked}
    assert set(find_circle(import_graph(sources))) == {"p.a", "p.b", "p.c"}
    assert find_circle(import_graph(sources | {"p.c": checked})) == []


def test_folders_are_small() -> None:
    counts = Counter(file.parent for file in TREE if file.name != "__init__.py")
    for folder, count in counts.items():
        assert count <= MOST_FILES, f"{folder} has {count} source files"


def test_modules_are_short() -> None:
    for file in TREE:
        lines = len(file.read_text().splitlines())
        assert lines <= MOST_LINES, f"{file} has {lines} lines"
