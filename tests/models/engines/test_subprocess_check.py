"""A failed check in a subprocess always has a reason of one line."""

import re
import sys

import pytest
import torch

from models import SHIPPED
from models.engines.protocol import EngineError
from models.engines.subprocess_check import DeviceTaken, check_in_subprocess, run_check
from models.model_repository import find_version

SHIPPED_CHECKPOINT = find_version(SHIPPED, "cifar10_rnn_gate_38", None)


def test_a_correct_engine_passes() -> None:
    check_in_subprocess(SHIPPED_CHECKPOINT, "torch", "cpu", "branch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_reason_comes_from_torch() -> None:
    with pytest.raises(EngineError, match=r"CUDA|NVIDIA|conditional nodes"):
        check_in_subprocess(SHIPPED_CHECKPOINT, "cuda_graph", "cuda:0", "branch")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        ("import sys; print('warning', file=sys.stderr); sys.exit('an illegal address')", "^an illegal address$"),
        ("import sys; sys.exit(7)", "exited with status 7"),
    ],
)
def test_the_reason_names_what_ended_the_process(code: str, reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        run_check([sys.executable, "-c", code], 60)


@pytest.mark.parametrize(
    "reason",
    [
        "AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "the CUDA driver refuses cuDevicePrimaryCtxRetain: CUDA_ERROR_DEVICE_UNAVAILABLE",
    ],
)
def test_a_gpu_that_only_one_process_may_use_is_no_fault_of_the_engine(reason: str) -> None:
    with pytest.raises(DeviceTaken, match=re.escape(reason)):
        run_check([sys.executable, "-c", f"import sys; sys.exit({reason!r})"], 60)


def test_a_check_that_hangs_is_killed() -> None:
    with pytest.raises(EngineError, match=r"hung and was killed after 0\.5 s"):
        run_check([sys.executable, "-c", "import threading; threading.Event().wait()"], 0.5)
