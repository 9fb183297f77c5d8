"""The processes of torchrun end with the gradients and statistics of one process for the global batch."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.models.training.distributed.steps import CASES, DATASETS, run_stages, share_of_images, take_step

PROCESSES = 2
TOLERANCE = 1e-10
"""Largest difference, as a share of the largest value of a tensor."""


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the processes after a step of each case."""
    file = tmp_path_factory.mktemp("steps") / "steps.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    command = [*torchrun, "-m", "tests.models.training.distributed.steps", str(file)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    taken: dict[str, Any] = torch.load(file, weights_only=True)
    return taken


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_one_process(of_processes: dict[str, Any], case: str) -> None:
    expected, found = take_step(*CASES[case]), of_processes[case]
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
            continue
        assert found[name] is not None, name
        scale = max(float(value.abs().max()), 1e-3)
        assert float((found[name] - value).abs().max()) <= TOLERANCE * scale, name


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_shares_are_the_images_of_one_process(of_processes: dict[str, Any], dataset: str) -> None:
    torch.testing.assert_close(of_processes["images"][dataset], share_of_images()[dataset], rtol=0, atol=0)


def test_the_trained_weights_are_those_of_one_process(of_processes: dict[str, Any]) -> None:
    expected, found = run_stages(), of_processes["trained"]
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, msg=name)
