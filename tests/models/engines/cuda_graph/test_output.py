"""The CUDA graph engine without CUDA: it calls the function that it would capture."""

import weakref

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.engines.cuda_graph import engine as cuda_graph
from models.engines.cuda_graph.engine import CapturedForward, CudaGraphEngine, largest_batch
from models.engines.folding import FoldedNetwork
from models.engines.protocol import Engine, EngineError, Routed
from models.engines.torch.forward import average
from models.engines.torch.reference import ReferenceEngine
from models.macs import Mode
from models.network import SkipNet
from models.preprocessing import InputSpec, normalisation, normalise

NEAR = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.05}
"""The distance of a probability to its threshold at which rounding may change a decision, and the tolerance of logits.
"""


@pytest.fixture(scope="module")
def reference(network: SkipNet) -> Engine:
    return ReferenceEngine(network)


THRESHOLDS = {
    "its own": np.random.default_rng(11).permutation(np.linspace(0.35, 0.65, 8)).astype(np.float32),
    "all": np.zeros(8, np.float32),
    "none": np.ones(8, np.float32),
    "mixed": np.array([0, 1, 2, 0.5, 1, -1, 1, 1], np.float32),
}


def agree(output: Routed, expected: Routed, thresholds: NDArray[np.float32], near: float) -> int:
    """Compare the images whose decisions rounding cannot change, and return their number."""
    near_threshold = (np.abs(expected.probability - thresholds[:, None]) <= near) & (expected.probability != 1)
    clear = ~(near_threshold & (thresholds > 0)[:, None] & (thresholds < 1)[:, None]).any(1)
    np.testing.assert_array_equal(output.executed[clear], expected.executed[clear])
    np.testing.assert_allclose(output.probability[clear], expected.probability[clear], atol=near)
    scale = np.abs(expected.logits).max()
    np.testing.assert_allclose(output.logits[clear] / scale, expected.logits[clear] / scale, atol=near)
    return int(clear.sum())


@pytest.mark.parametrize("routing", THRESHOLDS)
def test_output_equals_the_reference(
    mode: Mode, folded: FoldedNetwork, reference: Engine, pictures: NDArray[np.float32], routing: str
) -> None:
    engine = CudaGraphEngine(folded, "cpu", mode, torch.float32)
    for part in (slice(0, 8), slice(1, 6), slice(4, 5), slice(7, 8)):
        images, thresholds = pictures[part], THRESHOLDS[routing][part]
        output = engine.run(images, thresholds)
        compared = agree(output, reference.run(images, thresholds), thresholds, NEAR[torch.float32])
        assert compared > 0.6 * len(images)
        assert output.mode == mode
        assert {array.dtype.name for array in (output.logits, output.probability)} == {"float32"}


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38"], indirect=True)
def test_a_batch_without_images_is_refused(folded: FoldedNetwork, pictures: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="no image"):
        CudaGraphEngine(folded, "cpu").run(pictures[:0], np.zeros(0, np.float32))


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38"], indirect=True)
def test_pixels_give_the_same_bits_as_normalised_images(mode: Mode, folded: FoldedNetwork) -> None:
    """Batches of five are padded to eight."""
    spec = InputSpec(height=32, width=32, resize=32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    thresholds = np.array([0.5, 0, 1, 0.5, 0.4], np.float32)
    engine = CudaGraphEngine(folded, "cpu", mode, torch.float32, normalisation(spec))
    expected, output = engine.run(normalise(pixels, spec), thresholds), engine.run_pixels(pixels, thresholds)
    np.testing.assert_array_equal(output.logits, expected.logits)
    np.testing.assert_array_equal(output.executed, expected.executed)
    assert len(engine.captured) == 2


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38"], indirect=True)
def test_a_closed_engine_refuses(folded: FoldedNetwork, pictures: NDArray[np.float32]) -> None:
    """Otherwise it would capture again, and hold the memory that it had released."""
    engine = CudaGraphEngine(folded, "cpu")
    engine.close()
    with pytest.raises(EngineError, match="the engine cuda_graph on cpu is closed"):
        engine.run(pictures[:1], np.zeros(1, np.float32))
    assert engine.captured == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_makes_the_same_decisions(
    mode: Mode, dtype: torch.dtype, folded: FoldedNetwork, reference: Engine, pictures: NDArray[np.float32]
) -> None:
    thresholds = np.full(8, 0.5, np.float32)
    output = CudaGraphEngine(folded, "cpu", mode, dtype).run(pictures, thresholds)
    assert agree(output, reference.run(pictures, thresholds), thresholds, NEAR[dtype]) >= 1


def test_padding_images_do_not_change_the_output(
    mode: Mode, folded: FoldedNetwork, pictures: NDArray[np.float32]
) -> None:
    """After a batch of eight, three of its images stay in the buffer during a batch of five."""
    thresholds = np.full(8, 0.5, np.float32)
    used, fresh = (CudaGraphEngine(folded, "cpu", mode, torch.float32) for _ in range(2))
    used.run(pictures * 100, np.zeros(8, np.float32))
    outputs = [engine.run(pictures[:5], thresholds[:5]) for engine in (used, fresh)]
    np.testing.assert_array_equal(outputs[0].logits, outputs[1].logits)
    np.testing.assert_array_equal(outputs[0].executed, outputs[1].executed)
    assert set(used.captured) == {pictures.shape}
    used.run(pictures[:5], np.ones(5, np.float32))
    skipping = used.captured[pictures.shape].skipping
    assert skipping is None or not skipping.ran.any(), "padding images were computed"


def test_a_large_batch_is_split(
    folded: FoldedNetwork, pictures: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = CudaGraphEngine(folded, "cpu", "mask", torch.float32).run(pictures, np.full(8, 0.5, np.float32))
    monkeypatch.setitem(cuda_graph.LARGEST, "mask", 2)
    engine = CudaGraphEngine(folded, "cpu", "mask", torch.float32)
    split = engine.run(pictures[:7], np.full(7, 0.5, np.float32))
    np.testing.assert_array_equal(split.executed, together.executed[:7])
    np.testing.assert_allclose(split.logits, together.logits[:7], atol=1e-4, rtol=1e-4)
    assert sorted(shape[0] for shape in engine.captured) == [1, 2]


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38"], indirect=True)
def test_a_batch_without_memory_is_split(
    folded: FoldedNetwork, pictures: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    thresholds = np.full(8, 0.5, np.float32)
    together = CudaGraphEngine(folded, "cpu", "branch", torch.float32).run(pictures, thresholds)
    tried: list[int] = []
    failed: list[weakref.ref[CapturedForward]] = []

    class LimitedForward(CapturedForward):
        def __init__(self, engine: CudaGraphEngine, shape: tuple[int, ...], kind: torch.dtype) -> None:
            assert not any(captured() for captured in failed), "a failed capture still holds its memory"
            failed.append(weakref.ref(self))
            tried.append(shape[0])
            if shape[0] > most:
                try:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                finally:
                    if shape[0] == 8:
                        raise RuntimeError("capture was invalidated")
            failed.clear()
            super().__init__(engine, shape, kind)

    monkeypatch.setattr(cuda_graph, "CapturedForward", LimitedForward)
    engine, most = CudaGraphEngine(folded, "cpu", "branch", torch.float32), 2
    for _ in range(2):
        split = engine.run(pictures, thresholds)
        np.testing.assert_array_equal(split.executed, together.executed)
        np.testing.assert_allclose(split.logits, together.logits, atol=1e-4, rtol=1e-4)
    # A failed size is not tried again.
    assert tried == [8, 4, 2]
    engine, most = CudaGraphEngine(folded, "cpu", "branch", torch.float32), 0
    with pytest.raises(torch.OutOfMemoryError):
        engine.run(pictures, thresholds)
    monkeypatch.setattr(cuda_graph, "CapturedForward", Broken)
    engine = CudaGraphEngine(folded, "cpu", "branch", torch.float32)
    with pytest.raises(RuntimeError, match="misaligned"):
        engine.run(pictures, thresholds)
    assert set(engine.captured) == set()


class Broken(CapturedForward):
    def __init__(self, *_: object) -> None:
        raise RuntimeError("misaligned address")


def test_batches_are_bounded_by_pixels() -> None:
    sizes = [largest_batch("mask", 32, 32), largest_batch("mask", 224, 224), largest_batch("mask", 225, 224)]
    assert sizes == [1024, 64, 32]
    assert (largest_batch("branch", 32, 32), largest_batch("branch", 224, 224)) == (256, 32)
    assert largest_batch("mask", 10_000, 10_000) == 1


def test_averages_of_half_precision_maps_are_float32() -> None:
    """Rounded to float16, this average would be 1."""
    x = torch.ones(1, 1, 32, 32, dtype=torch.float16)
    x[0, 0, 0, 0] = 1.25
    assert average(x).item() == 1 + 0.25 / 1024
