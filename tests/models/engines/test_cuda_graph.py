"""The CUDA graph engine on a machine without CUDA: the function that would be recorded is called instead."""

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._higher_order_ops import cudagraph_conditional_nodes
from torch._higher_order_ops.cudagraph_conditional_nodes import CUDAGraphCaptureControlFlowOpDispatchMode
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.engines import cuda_graph, skipping
from models.engines.cuda_graph import CudaGraphEngine, Recording, largest_batch
from models.engines.engine import Engine, EngineError, Routed
from models.engines.folding import ConvolutionalGate, FoldedBlock, FoldedNetwork, fold
from models.engines.forward import arrange, average, forward
from models.engines.reference import ReferenceEngine
from models.engines.skipping import OnDevice, buckets, compact, mask
from models.macs import Mode
from models.network import SkipNet

ARCHITECTURES = [
    "cifar10_rnn_gate_38",
    "cifar10_feedforward_38",
    "imagenet_rnn_gate_18",
    "imagenet_rnn_gate_50",
    "cifar10_resnet_38",
]
NEAR = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.05}
"""How near its threshold a probability may be decided by rounding, and how far logits may be off."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def network(architecture: str, lively_network: Callable[[str], SkipNet]) -> SkipNet:
    return lively_network(architecture)


@pytest.fixture(scope="module")
def folded(network: SkipNet) -> FoldedNetwork:
    return fold(network)


@pytest.fixture(scope="module")
def pictures(architecture: str, make_images: Callable[[str], NDArray[np.float32]]) -> NDArray[np.float32]:
    return make_images(architecture)


@pytest.fixture(scope="module")
def reference(network: SkipNet) -> Engine:
    return ReferenceEngine(network)


@pytest.fixture(params=["mask", "branch"])
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


THRESHOLDS = {
    "its own": np.random.default_rng(11).permutation(np.linspace(0.35, 0.65, 8)).astype(np.float32),
    "all": np.zeros(8, np.float32),
    "none": np.ones(8, np.float32),
    "mixed": np.array([0, 1, 2, 0.5, 1, -1, 1, 1], np.float32),
}


def agree(answer: Routed, expected: Routed, thresholds: NDArray[np.float32], near: float) -> int:
    """Compare the images that rounding cannot divert; return how many those are."""
    open_to_rounding = (np.abs(expected.probability - thresholds[:, None]) <= near) & (expected.probability != 1)
    clear = ~(open_to_rounding & (thresholds > 0)[:, None] & (thresholds < 1)[:, None]).any(1)
    np.testing.assert_array_equal(answer.executed[clear], expected.executed[clear])
    np.testing.assert_allclose(answer.probability[clear], expected.probability[clear], atol=near)
    scale = np.abs(expected.logits).max()
    np.testing.assert_allclose(answer.logits[clear] / scale, expected.logits[clear] / scale, atol=near)
    return int(clear.sum())


@pytest.mark.parametrize("routing", THRESHOLDS)
def test_answers_what_the_reference_answers(
    mode: Mode, folded: FoldedNetwork, reference: Engine, pictures: NDArray[np.float32], routing: str
) -> None:
    engine = CudaGraphEngine(folded, "cpu", mode, torch.float32)
    for part in (slice(0, 8), slice(1, 6), slice(4, 5), slice(7, 8)):
        images, thresholds = pictures[part], THRESHOLDS[routing][part]
        answer = engine.run(images, thresholds)
        compared = agree(answer, reference.run(images, thresholds), thresholds, NEAR[torch.float32])
        assert compared > 0.6 * len(images)
        assert answer.mode == mode
        assert {array.dtype.name for array in (answer.logits, answer.probability)} == {"float32"}


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38"], indirect=True)
def test_a_batch_without_images_is_refused(folded: FoldedNetwork, pictures: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="no image"):
        CudaGraphEngine(folded, "cpu").run(pictures[:0], np.zeros(0, np.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_decides_alike(
    mode: Mode, dtype: torch.dtype, folded: FoldedNetwork, reference: Engine, pictures: NDArray[np.float32]
) -> None:
    thresholds = np.full(8, 0.5, np.float32)
    answer = CudaGraphEngine(folded, "cpu", mode, dtype).run(pictures, thresholds)
    assert agree(answer, reference.run(pictures, thresholds), thresholds, NEAR[dtype]) >= 1


def test_what_fills_a_batch_up_changes_nothing(
    mode: Mode, folded: FoldedNetwork, pictures: NDArray[np.float32]
) -> None:
    """A batch of five leaves three images of the batch of eight before it in the buffer."""
    thresholds = np.full(8, 0.5, np.float32)
    used, fresh = (CudaGraphEngine(folded, "cpu", mode, torch.float32) for _ in range(2))
    used.run(pictures * 100, np.zeros(8, np.float32))
    answers = [engine.run(pictures[:5], thresholds[:5]) for engine in (used, fresh)]
    np.testing.assert_array_equal(answers[0].logits, answers[1].logits)
    np.testing.assert_array_equal(answers[0].executed, answers[1].executed)
    assert set(used.recordings) == {pictures.shape}
    used.run(pictures[:5], np.ones(5, np.float32))
    skipping = used.recordings[pictures.shape].skipping
    assert skipping is None or not skipping.ran.any(), "what fills up was computed"


def test_a_large_batch_is_split(
    folded: FoldedNetwork, pictures: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = CudaGraphEngine(folded, "cpu", "mask", torch.float32).run(pictures, np.full(8, 0.5, np.float32))
    monkeypatch.setitem(cuda_graph.LARGEST, "mask", 2)
    engine = CudaGraphEngine(folded, "cpu", "mask", torch.float32)
    split = engine.run(pictures[:7], np.full(7, 0.5, np.float32))
    np.testing.assert_array_equal(split.executed, together.executed[:7])
    np.testing.assert_allclose(split.logits, together.logits[:7], atol=1e-4, rtol=1e-4)
    assert sorted(shape[0] for shape in engine.recordings) == [1, 2]


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38"], indirect=True)
def test_a_batch_without_memory_is_split(
    folded: FoldedNetwork, pictures: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    thresholds = np.full(8, 0.5, np.float32)
    together = CudaGraphEngine(folded, "cpu", "branch", torch.float32).run(pictures, thresholds)
    tried: list[int] = []
    failed: list[weakref.ref[Recording]] = []

    class Recorded(Recording):
        def __init__(self, engine: CudaGraphEngine, shape: tuple[int, ...]) -> None:
            assert not any(recording() for recording in failed), "what has failed still holds its memory"
            failed.append(weakref.ref(self))
            tried.append(shape[0])
            if shape[0] > most:
                try:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                finally:
                    if shape[0] == 8:
                        raise RuntimeError("capture was invalidated")
            failed.clear()
            super().__init__(engine, shape)

    monkeypatch.setattr(cuda_graph, "Recording", Recorded)
    engine, most = CudaGraphEngine(folded, "cpu", "branch", torch.float32), 2
    for _ in range(2):
        split = engine.run(pictures, thresholds)
        np.testing.assert_array_equal(split.executed, together.executed)
        np.testing.assert_allclose(split.logits, together.logits, atol=1e-4, rtol=1e-4)
    # What failed once is not tried again.
    assert tried == [8, 4, 2]
    engine, most = CudaGraphEngine(folded, "cpu", "branch", torch.float32), 0
    with pytest.raises(torch.OutOfMemoryError):
        engine.run(pictures, thresholds)
    monkeypatch.setattr(cuda_graph, "Recording", Broken)
    engine = CudaGraphEngine(folded, "cpu", "branch", torch.float32)
    with pytest.raises(RuntimeError, match="misaligned"):
        engine.run(pictures, thresholds)
    assert set(engine.recordings) == set()


class Broken(Recording):
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


class Trace(TorchDispatchMode):
    """Notes every operator and every tensor that is not on the GPU; takes both branches of a ``torch.cond``."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.on_host: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.higher_order.cond:
            _, *branches, operands = args
            self.operators.append("cond")
            with self:
                for branch in branches:
                    assert branch(*operands) == ()
            return ()
        out = func(*args, **(kwargs or {}))
        self.operators.append(str(func))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if any(tensor.device.type != "cuda" for tensor in tensors):
            self.on_host.append(str(func))
        return out


@contextmanager
def pretended_cuda(folded: FoldedNetwork) -> Iterator[FoldedNetwork]:
    """CUDA tensors without memory: whatever would need a value of one on the host raises, but for plain copies."""
    with FakeTensorMode() as mode, torch.no_grad():
        yield arrange(pretend(folded, mode), "cuda:0", torch.float16)


def pretend(part: Any, mode: FakeTensorMode) -> Any:
    if isinstance(part, Tensor):
        return mode.from_tensor(part)
    if isinstance(part, tuple):
        return tuple(pretend(item, mode) for item in part)
    if not is_dataclass(part):
        return part
    return replace(part, **{field.name: pretend(getattr(part, field.name), mode) for field in fields(part)})  # type: ignore[type-var]


def pretended_recording(network: FoldedNetwork, mode: Mode, images: int, side: int) -> Recording:
    engine = SimpleNamespace(network=network, dtype=torch.float16, device="cuda:0", mode=mode, stream=None)
    return Recording(engine, (images, 3, side, side))  # type: ignore[arg-type]


@pytest.mark.parametrize("images", [1, 8])
def test_nothing_waits_for_the_device(
    mode: Mode, folded: FoldedNetwork, pictures: NDArray[np.float32], images: int
) -> None:
    with pretended_cuda(folded) as network:
        recording = pretended_recording(network, mode, images, pictures.shape[-1])
        with Trace() as trace:
            answer = recording.forward()
    assert (answer.device.type, answer.dtype) == ("cuda", torch.float32)
    assert answer.shape == (images, len(folded.head_bias) + len(folded.gates))
    assert trace.on_host == []
    assert trace.operators.count("cond") == (len(folded.gates) * len(buckets(images)) if mode == "branch" else 0)
    # Both branches of every condition were traced.
    assert sum("conv" in name for name in trace.operators) == convolutions(
        folded, len(buckets(images)) if mode == "branch" else 1
    )


def convolutions(folded: FoldedNetwork, times: int) -> int:
    """Return how many convolutions there are where each gated block is written down so many times."""
    first, *others = folded.blocks
    projections = sum(block.projection is not None for block in folded.blocks)
    gates = sum(len(gate.convolutions) for gate in folded.gates if isinstance(gate, ConvolutionalGate))
    residuals = sum(len(block.residual) for block in others)
    return 1 + len(first.residual) + projections + gates + residuals * (times if folded.gates else 1)


@pytest.mark.parametrize("architecture", ["imagenet_rnn_gate_18"], indirect=True)
def test_what_does_wait_is_found(folded: FoldedNetwork) -> None:
    with pretended_cuda(folded) as network:
        images = torch.zeros(1, 3, 64, 64, device="cuda:0", dtype=torch.float16)
        limits = torch.zeros(1, device="cuda:0")
        with pytest.raises(DataDependentOutputException):
            forward(network, images, limits, compact)

        def peek(block: FoldedBlock, x: Tensor, decision: Tensor) -> Tensor:
            decision.cpu()
            return mask(block, x, decision)

        with Trace() as trace:
            forward(network, images, limits, peek)
    assert trace.on_host == ["aten._to_copy.default"] * len(folded.gates)


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38", "imagenet_rnn_gate_50"], indirect=True)
def test_torch_records_a_condition_for_each_bucket_of_each_block(
    folded: FoldedNetwork, pictures: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode of torch that turns ``torch.cond`` into conditional nodes, but for the nodes themselves."""
    predicates: list[tuple[int, ...]] = []

    def body(predicate: Tensor) -> nullcontext[None]:
        assert (predicate.is_cuda, predicate.dtype) == (True, torch.bool)
        predicates.append(tuple(predicate.shape))
        return nullcontext()

    monkeypatch.setattr(cudagraph_conditional_nodes, "_if_body", body)
    with pretended_cuda(folded) as network:
        recording = pretended_recording(network, "branch", 8, pictures.shape[-1])
        with CUDAGraphCaptureControlFlowOpDispatchMode():
            answer = recording.forward()
    assert answer.shape == (8, len(folded.head_bias) + len(folded.gates))
    # Each condition is two nodes: one for where it holds, one for where it does not.
    assert predicates == [()] * 2 * len(folded.gates) * len(buckets(8))


@pytest.mark.parametrize("architecture", ["imagenet_rnn_gate_18"], indirect=True)
def test_every_branch_has_run_before_it_is_recorded(
    folded: FoldedNetwork, pictures: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a library does on its first call would fail inside a recording."""
    replays: list[bool] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: replays.append(True)))
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    monkeypatch.setattr(cuda_graph, "conditional_nodes", lambda: (nullcontext(), nullcontext()))
    engine = CudaGraphEngine(folded, "cpu", "branch", torch.float32)
    ran = torch.zeros(len(folded.gates), len(buckets(8)), dtype=torch.bool)

    class Watched(Recording):
        def forward(self) -> Tensor:
            answer = super().forward()
            assert self.skipping is not None
            ran.logical_or_(self.skipping.ran)
            return answer

    with torch.inference_mode():
        recording = Watched(engine, pictures.shape)
        recording.replay = recording.record(None)  # type: ignore[arg-type]
        assert ran.all()
        recording.run(torch.from_numpy(pictures), torch.zeros(8))
    assert replays == [True]


@pytest.mark.parametrize("images", [1, 2, 3, 8])
@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38", "imagenet_rnn_gate_50"], indirect=True)
def test_a_block_runs_on_the_smallest_bucket_that_holds_its_images(
    folded: FoldedNetwork, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one image more than a bucket holds: no number of images overflows, none is computed in vain."""
    rows: list[int] = []
    plain = skipping.residual

    def counting(block: object, x: Tensor) -> Tensor:
        rows.append(len(x))
        return plain(block, x)  # type: ignore[arg-type]

    monkeypatch.setattr(skipping, "residual", counting)
    generator = torch.Generator().manual_seed(images)
    for block in (folded.blocks[1], next(block for block in folded.blocks[1:] if block.projection)):
        for executing in range(images + 1):
            decision = (torch.arange(images) < executing)[torch.randperm(images, generator=generator)]
            x = torch.randn(images, block.residual[0].weight.shape[1], 8, 8, generator=generator)
            x = x.to(memory_format=torch.channels_last)
            skip = OnDevice(1, images, "cpu")
            expected = mask(block, x.clone(), decision)
            torch.testing.assert_close(skip(block, x, decision), expected, atol=1e-5, rtol=1e-5)
            due = [bucket for bucket in buckets(images) if bucket >= executing][:1] if executing else []
            assert rows == due
            assert [bucket for bucket, ran in zip(buckets(images), skip.ran[0], strict=True) if ran] == due
            rows.clear()


def test_buckets() -> None:
    assert [buckets(images) for images in (1, 2, 4, 6, 32)] == [
        (1,),
        (1, 2),
        (1, 2, 3, 4),
        (2, 3, 5, 6),
        (8, 16, 24, 32),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_torch_without_conditional_nodes_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"conditional nodes need CUDA 12\.4; this torch is built for None"):
        cuda_graph.require_conditional_nodes()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setitem(sys.modules, "torch._higher_order_ops.cudagraph_conditional_nodes", None)
    monkeypatch.delattr(torch._higher_order_ops, "cudagraph_conditional_nodes")
    with pytest.raises(EngineError, match=r"cannot record torch\.cond"):
        cuda_graph.require_conditional_nodes()
