"""Run tests in parallel: one worker for each CPU, each module on one worker, the longest modules first."""

import os

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from models.machine import available_cpus

LONGEST = (
    "tests/deploy",
    "tests/models/test_shipped",
    "tests/models/training",
    "tests/models/engines/test_parity",
    "tests/models/engines/cuda_graph",
    "tests/models/importing",
    "tests/service/cli",
    "tests/service/workers",
    "tests/service/test_connections",
    "tests/service/http/test_contract",
)
"""Paths of the modules that take longest. They start first, so that none of them runs alone at the end."""

SHARED_FIXTURES = ("tests/deploy",)
"""Packages whose modules run on one worker, because they share an expensive fixture (Prometheus with a served model).
"""


class ModuleScheduling(LoadScopeScheduling):
    """Send each module to one worker, so that its fixtures are compiled, trained and started once."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return next((package for package in SHARED_FIXTURES if module.startswith(f"{package}/")), module)


def pytest_xdist_auto_num_workers() -> int:
    """Return the workers of ``--numprocesses auto``: the CPUs that this container may use."""
    return available_cpus()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ModuleScheduling:
    config.option.loadscopereorder = False
    return ModuleScheduling(config, log)


def pytest_configure() -> None:
    """Give each worker and the processes that it starts their share of the CPUs.

    With more threads than CPUs, each thread waits for one that does not run.
    """
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        share = str(max(1, available_cpus() // workers))
        os.environ |= {"PYTHON_CPU_COUNT": share, "OMP_NUM_THREADS": share}


def pytest_runtest_setup() -> None:
    """Run PyTorch's operators on one thread, because the tests' networks are small."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
