"""A trial ends with a reason of one line, whatever happens in its process."""

import sys

import pytest
import torch

from models import SHIPPED
from models.checkpoint import find_version
from models.engines.protocol import EngineError
from models.engines.trial import conduct, try_apart

SHIPPED_CHECKPOINT = find_version(SHIPPED, "cifar10_rnn_gate_38", None)


def test_an_engine_that_answers_rightly_passes() -> None:
    try_apart(SHIPPED_CHECKPOINT, "torch", "cpu", "branch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_reason_is_torchs_own() -> None:
    with pytest.raises(EngineError, match=r"CUDA|NVIDIA|conditional nodes"):
        try_apart(SHIPPED_CHECKPOINT, "cuda_graph", "cuda:0", "branch")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of signal 11"),
        ("import sys; print('warning', file=sys.stderr); sys.exit('an illegal address')", "^an illegal address$"),
        ("import sys; sys.exit(7)", "ended with status 7"),
    ],
)
def test_what_ends_the_process_is_told(code: str, reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        conduct([sys.executable, "-c", code], 60)


def test_a_trial_that_hangs_is_ended() -> None:
    with pytest.raises(EngineError, match=r"hung, and was ended after 0\.5 s"):
        conduct([sys.executable, "-c", "import threading; threading.Event().wait()"], 0.5)
