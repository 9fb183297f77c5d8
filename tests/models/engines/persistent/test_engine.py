"""The persistent engine itself, with a stand-in for the CUDA driver that runs the kernel on simulated thread blocks."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.blocks import BasicBlock
from models.checkpoint import Checkpoint, Config
from models.engines.folding import fold
from models.engines.persistent import engine as persistent
from models.engines.persistent import gpu, slot
from models.engines.persistent.build import kernel_name
from models.engines.persistent.engine import PersistentEngine
from models.engines.protocol import EngineError
from models.engines.torch.reference import ReferenceEngine
from models.engines.verification import Disagreement, Verification
from models.network import SkipNet
from models.preprocessing import InputSpec, normalisation, normalise
from tests.models.engines.persistent.standin import Seen, Settings, current_context, standin
from tests.models.engines.persistent.test_output import agree

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here: install g++"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver already"),
]

SPEC = InputSpec(height=32, width=32, resize=32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
ILLEGAL_ADDRESS = 700


@pytest.fixture(scope="module")
def network() -> SkipNet:
    torch.manual_seed(3)
    return SkipNet(stem="cifar", block=BasicBlock, blocks=(2, 1, 1), classes=5, gates="rnn").eval()


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), np.uint8)


THRESHOLDS = np.array([0.5, 0, 1, 0.45, 0.55, 1, 1, 0, 0.5, 0.5, 0], np.float32)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Seen, Settings]]:
    """The stand-in, without compiling for a GPU."""
    code = SimpleNamespace(code=b"\x7fELF", symbol_mapping={kernel_name("rnn"): b"route"})
    monkeypatch.setattr(gpu, "compile_kernel", lambda *_: (code, ""))
    with standin("rnn") as found:
        yield found


@pytest.fixture
def engine(driver: tuple[Seen, Settings], network: SkipNet) -> Iterator[PersistentEngine]:
    assert driver[0].contexts == 0
    made = PersistentEngine(fold(network), "cuda:0", normalisation(SPEC))
    yield made
    made.close()
    assert current_context() is None


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a launch take four images, so that eleven take three launches in two slots."""
    monkeypatch.setattr(slot, "CHUNK", 4)
    monkeypatch.setattr(persistent, "CHUNK", 4)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("thread_blocks", [1, 2, 4])
def test_a_batch_in_parts_equals_the_reference(
    driver: tuple[Seen, Settings],
    engine: PersistentEngine,
    network: SkipNet,
    pixels: NDArray[np.uint8],
    thread_blocks: int,
) -> None:
    """Also if a thread block takes a second, third and fourth image."""
    images, engine.thread_blocks = normalise(pixels, SPEC), thread_blocks
    output = engine.run(images, THRESHOLDS)
    assert agree(output, ReferenceEngine(network).run(images, THRESHOLDS), THRESHOLDS) == 0
    seen, _ = driver
    assert (seen.launches, seen.grid, seen.outside, seen.races) == (3, min(3, thread_blocks), 0, 0)
    one = engine.run(images[5:6], THRESHOLDS[5:6])
    np.testing.assert_array_equal(one.logits, output.logits[5:6])


@pytest.mark.usefixtures("small_parts")
def test_its_verification_covers_queues_pixels_and_parts(
    driver: tuple[Seen, Settings], engine: PersistentEngine, network: SkipNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(architecture="cifar10_rnn_gate_38", labels=list("abcde"), input=SPEC, code="tests")
    verification = Verification(Checkpoint(Path("tiny/1"), config, network), 3)
    verification.check(engine, [5])
    seen, _ = driver
    assert (seen.outside, seen.races, engine.thread_blocks) == (0, 0, 4)
    # A kernel that loses the second image of a thread block's queue is found.
    start = slot.Slot.start

    def lose(self: slot.Slot, images: slot.Images, thresholds: NDArray[np.float32], thread_blocks: int) -> None:
        start(self, images[np.arange(len(images)) % thread_blocks], thresholds, thread_blocks)

    monkeypatch.setattr(slot.Slot, "start", lose)
    with pytest.raises(Disagreement):
        verification.check(engine)


@pytest.mark.usefixtures("small_parts")
def test_pixels_give_the_same_bits_as_normalised_images(
    driver: tuple[Seen, Settings], engine: PersistentEngine, pixels: NDArray[np.uint8]
) -> None:
    """In turn, as a server may get both, and with thread blocks that take a second image."""
    engine.thread_blocks = 2
    expected = engine.run(normalise(pixels, SPEC), THRESHOLDS)
    for output in (engine.run_pixels(pixels, THRESHOLDS), engine.run(normalise(pixels, SPEC), THRESHOLDS)):
        for name in ("logits", "probability", "executed"):
            np.testing.assert_array_equal(getattr(output, name), getattr(expected, name))
    assert (driver[0].outside, driver[0].races) == (0, 0)
    with pytest.raises(ValueError, match=r"not \(N, 32, 32, 3\)"):
        engine.run_pixels(pixels.transpose(0, 3, 1, 2), THRESHOLDS)


def test_memory_is_bounded_and_never_allocated_while_it_serves(driver: tuple[Seen, Settings], network: SkipNet) -> None:
    seen, settings = driver
    settings.kernel = None
    engine = PersistentEngine(fold(network), "cuda:0")
    before = seen.allocations, seen.pinned, seen.device
    assert seen.pinned < 7 << 20
    for count in (1, 300, 1024, 1):
        engine.run(np.zeros((count, 3, 32, 32), np.float32), np.ones(count, np.float32))
        assert (seen.allocations, seen.pinned, seen.device) == before
    assert seen.waits == 0, "a launch that is done needs no wait in the driver"
    engine.close()


def test_a_closed_engine_refuses_and_holds_nothing(
    driver: tuple[Seen, Settings], engine: PersistentEngine, pixels: NDArray[np.uint8]
) -> None:
    seen, _ = driver
    engine.close()
    engine.close()
    assert (seen.pinned, seen.device, seen.contexts) == (0, 0, 0)
    with pytest.raises(EngineError, match="the engine persistent on cuda:0 is closed"):
        engine.run(normalise(pixels, SPEC), THRESHOLDS)
    assert seen.launches == 0


def test_a_failed_kernel_is_an_error_and_leaves_the_current_context(
    driver: tuple[Seen, Settings], engine: PersistentEngine, pixels: NDArray[np.uint8]
) -> None:
    """As torch on another GPU may have set it in this thread."""
    seen, settings = driver
    other = engine.gpu.driver.CUcontext(4096)
    engine.gpu.driver.cuCtxPushCurrent(other)
    try:
        engine.run(normalise(pixels, SPEC), THRESHOLDS)
        assert (current_context(), seen.waits) == (4096, 0)
        settings.failure = ILLEGAL_ADDRESS
        with pytest.raises(EngineError, match="refuses cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"):
            engine.run(normalise(pixels, SPEC), THRESHOLDS)
        assert current_context() == 4096
    finally:
        engine.gpu.driver.cuCtxPopCurrent()
