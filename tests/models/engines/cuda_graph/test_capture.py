"""The captured function on fake CUDA tensors: it never waits for the device, and every branch is captured."""

import sys
from collections.abc import Iterator
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

from models.engines.cuda_graph import engine as cuda_graph
from models.engines.cuda_graph.engine import CapturedForward, CudaGraphEngine
from models.engines.folding import ConvolutionalGate, FoldedBlock, FoldedNetwork
from models.engines.protocol import EngineError
from models.engines.torch import skipping
from models.engines.torch.forward import arrange, forward, residual
from models.engines.torch.skipping import BucketSkipping, bucket_sizes, compact, mask
from models.macs import Mode


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects every operator and every tensor that is not on the GPU. It runs both branches of a ``torch.cond``."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
def fake_cuda(folded: FoldedNetwork) -> Iterator[FoldedNetwork]:
    """Yield the network on CUDA tensors without memory. An operator that needs a value on the host raises."""
    with FakeTensorMode() as mode, torch.no_grad():
        yield arrange(to_fake(folded, mode), "cuda:0", torch.float16)


def to_fake(part: Any, mode: FakeTensorMode) -> Any:
    if isinstance(part, Tensor):
        return mode.from_tensor(part)
    if isinstance(part, tuple):
        return tuple(to_fake(item, mode) for item in part)
    if not is_dataclass(part):
        return part
    return replace(part, **{field.name: to_fake(getattr(part, field.name), mode) for field in fields(part)})  # type: ignore[type-var]


def fake_captured(network: FoldedNetwork, mode: Mode, images: int, side: int, decoded: bool = False) -> CapturedForward:
    scales = torch.ones(2, 3, device="cuda:0")
    engine = SimpleNamespace(
        network=network, dtype=torch.float16, device="cuda:0", mode=mode, stream=None, normalisation=scales
    )
    if decoded:
        return CapturedForward(engine, (images, side, side, 3), torch.uint8)  # type: ignore[arg-type]
    return CapturedForward(engine, (images, 3, side, side))  # type: ignore[arg-type]


@pytest.mark.parametrize("images", [1, 8])
def test_nothing_waits_for_the_device(
    mode: Mode, folded: FoldedNetwork, pictures: NDArray[np.float32], images: int
) -> None:
    with fake_cuda(folded) as network:
        captured = fake_captured(network, mode, images, pictures.shape[-1], decoded=images == 8)
        with Trace() as trace:
            output = captured.forward()
    assert (output.device.type, output.dtype) == ("cuda", torch.float32)
    assert output.shape == (images, len(folded.head_bias) + len(folded.gates))
    assert trace.on_host == []
    assert trace.operators.count("cond") == (len(folded.gates) * len(bucket_sizes(images)) if mode == "branch" else 0)
    # Both branches of every condition were traced.
    assert sum("conv" in name for name in trace.operators) == convolutions(
        folded, len(bucket_sizes(images)) if mode == "branch" else 1
    )


def convolutions(folded: FoldedNetwork, times: int) -> int:
    """Return the number of convolutions if each gated block is traced ``times`` times."""
    first, *others = folded.blocks
    projections = sum(block.projection is not None for block in folded.blocks)
    gates = sum(len(gate.convolutions) for gate in folded.gates if isinstance(gate, ConvolutionalGate))
    residuals = sum(len(block.residual) for block in others)
    return 1 + len(first.residual) + projections + gates + residuals * (times if folded.gates else 1)


@pytest.mark.parametrize("architecture", ["imagenet_rnn_gate_18"], indirect=True)
def test_a_wait_is_found(folded: FoldedNetwork) -> None:
    with fake_cuda(folded) as network:
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
def test_torch_captures_a_condition_for_each_bucket_of_each_block(
    folded: FoldedNetwork, pictures: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run torch's mode that turns ``torch.cond`` into conditional nodes, without the nodes themselves."""
    predicates: list[tuple[int, ...]] = []

    def body(predicate: Tensor) -> nullcontext[None]:
        assert (predicate.is_cuda, predicate.dtype) == (True, torch.bool)
        predicates.append(tuple(predicate.shape))
        return nullcontext()

    monkeypatch.setattr(cudagraph_conditional_nodes, "_if_body", body)
    with fake_cuda(folded) as network:
        captured = fake_captured(network, "branch", 8, pictures.shape[-1])
        with CUDAGraphCaptureControlFlowOpDispatchMode():
            output = captured.forward()
    assert output.shape == (8, len(folded.head_bias) + len(folded.gates))
    # Each condition is two nodes, one for each outcome.
    assert predicates == [()] * 2 * len(folded.gates) * len(bucket_sizes(8))


@pytest.mark.parametrize("architecture", ["imagenet_rnn_gate_18"], indirect=True)
def test_every_branch_runs_before_the_capture(
    folded: FoldedNetwork, pictures: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The initialisation of a library would fail inside a capture."""
    replays: list[bool] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: replays.append(True)))
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    monkeypatch.setattr(cuda_graph, "conditional_nodes", lambda: (nullcontext(), nullcontext()))
    engine = CudaGraphEngine(folded, "cpu", "branch", torch.float32)
    ran = torch.zeros(len(folded.gates), len(bucket_sizes(8)), dtype=torch.bool)

    class TrackedForward(CapturedForward):
        def forward(self) -> Tensor:
            output = super().forward()
            assert self.skipping is not None
            ran.logical_or_(self.skipping.ran)
            return output

    with torch.inference_mode():
        captured = TrackedForward(engine, pictures.shape)
        captured.replay = captured.capture(None)  # type: ignore[arg-type]
        assert ran.all()
        captured.run(torch.from_numpy(pictures), torch.zeros(8))
    assert replays == [True]


@pytest.mark.parametrize("images", [1, 2, 3, 8])
@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38", "imagenet_rnn_gate_50"], indirect=True)
def test_a_block_runs_on_the_smallest_sufficient_bucket(
    folded: FoldedNetwork, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes one image more than a bucket holds."""
    counts: list[int] = []

    def counting(block: object, x: Tensor) -> Tensor:
        counts.append(len(x))
        return residual(block, x)  # type: ignore[arg-type]

    monkeypatch.setattr(skipping, "residual", counting)
    generator = torch.Generator().manual_seed(images)
    for block in (folded.blocks[1], next(block for block in folded.blocks[1:] if block.projection)):
        for executing in range(images + 1):
            decision = (torch.arange(images) < executing)[torch.randperm(images, generator=generator)]
            x = torch.randn(images, block.residual[0].weight.shape[1], 8, 8, generator=generator)
            x = x.to(memory_format=torch.channels_last)
            skip = BucketSkipping(1, images, "cpu")
            expected = mask(block, x.clone(), decision)
            torch.testing.assert_close(skip(block, x, decision), expected, atol=1e-5, rtol=1e-5)
            expected_buckets = (
                [bucket for bucket in bucket_sizes(images) if bucket >= executing][:1] if executing else []
            )
            assert counts == expected_buckets
            assert [
                bucket for bucket, ran in zip(bucket_sizes(images), skip.ran[0], strict=True) if ran
            ] == expected_buckets
            counts.clear()


def test_bucket_sizes() -> None:
    assert [bucket_sizes(images) for images in (1, 2, 4, 6, 32)] == [
        (1,),
        (1, 2),
        (1, 2, 3, 4),
        (2, 3, 5, 6),
        (8, 16, 24, 32),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_error_names_the_missing_feature_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"conditional nodes need CUDA 12\.4; this torch is built for None"):
        cuda_graph.require_conditional_nodes()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setitem(sys.modules, "torch._higher_order_ops.cudagraph_conditional_nodes", None)
    monkeypatch.delattr(torch._higher_order_ops, "cudagraph_conditional_nodes")
    with pytest.raises(EngineError, match=r"cannot capture torch\.cond"):
        cuda_graph.require_conditional_nodes()
