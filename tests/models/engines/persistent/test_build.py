"""The kernel compiles for every supported GPU and fits into its registers and shared memory."""

import ctypes
import shutil
from types import SimpleNamespace

import pytest

from models.engines.folding import fold
from models.engines.persistent import build as persistent_build
from models.engines.persistent import gpu
from models.engines.persistent.build import ARCHITECTURES, GATES, SHARED_BYTES, THREADS, resources
from models.engines.persistent.engine import PersistentEngine, suits
from models.engines.protocol import EngineError
from models.evaluation.forced_routes import random_network
from tests.models.engines.persistent.simulated import build
from tests.models.engines.persistent.standin import standin

pytest.importorskip("cuda.core", reason="the package cuda-core is missing: pip install -e '.[test]'")

COMPILED: list[tuple[str, str | None]] = [("sm_80", "rnn"), ("sm_90", "rnn"), ("sm_100", "rnn"), ("sm_120", "rnn")]
COMPILED += [("sm_90", gates) for gates in GATES if gates != "rnn"]


@pytest.mark.parametrize(("architecture", "gates"), COMPILED)
def test_the_kernel_fits(architecture: str, gates: str | None) -> None:
    used = resources(gates, architecture)
    assert (used.spilled, used.stack) == (0, 0)
    kilobytes = ARCHITECTURES[architecture][1]
    assert used.shared <= (kilobytes - 1) * 1024
    # Two thread blocks hide each other's waits, if the memory is enough for two.
    assert used.blocks(architecture) == (2 if kilobytes > 160 else 1)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here: install g++")
def test_python_and_the_kernel_agree_on_the_launch() -> None:
    library = ctypes.CDLL(str(build("NoGate")))
    assert (library.shared_bytes(), library.threads()) == (SHARED_BYTES, THREADS)


def test_a_compiler_error_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(persistent_build.GATES, "rnn", "NoSuchGate")
    with pytest.raises(EngineError, match=r"NVRTC cannot compile the persistent engine for sm_86: .*NoSuchGate"):
        persistent_build.compile_kernel("rnn", "sm_86")


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here: install g++")
def test_the_engine_loads_what_the_compiler_made() -> None:
    """For the GPU's own architecture, and under the name that the compiler gave to the kernel."""
    with standin(computes=False) as (seen, settings):
        settings.compute = 90
        engine = PersistentEngine(fold(random_network("cifar10_rnn_gate_38")), "cuda:0")
        assert engine.thread_blocks == 2 * settings.multiprocessors
        engine.close()
        settings.compute = 75
        with pytest.raises(EngineError, match=r"compute capability 8\.0 or more, not 7\.5; choose the engine torch"):
            PersistentEngine(fold(random_network("cifar10_rnn_gate_38")), "cuda:0")
        assert (seen.contexts, seen.pinned, seen.device) == (0, 0, 0)


def test_the_error_names_the_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: int) -> None:
        raise RuntimeError("libcuda.so.1 cannot be found")

    monkeypatch.setattr(gpu, "find_driver", lambda: SimpleNamespace(cuInit=absent, cuLaunchKernel=None))
    with pytest.raises(EngineError, match=r"needs a GPU and its driver: libcuda\.so\.1 cannot be found"):
        PersistentEngine(fold(random_network("cifar10_rnn_gate_38")), "cuda:0")


@pytest.mark.parametrize(
    ("architecture", "side", "expected"),
    [
        ("cifar10_resnet_38", 32, True),
        ("svhn_rnn_gate_152", 32, True),
        ("cifar100_feedforward_110", 32, True),
        ("cifar10_rnn_gate_38", 64, False),
        ("imagenet_rnn_gate_18", 32, False),
        ("imagenet_rnn_gate_50", 224, False),
    ],
)
def test_the_supported_networks_are_recognised(architecture: str, side: int, expected: bool) -> None:
    assert suits(fold(random_network(architecture)), side, side) == expected
