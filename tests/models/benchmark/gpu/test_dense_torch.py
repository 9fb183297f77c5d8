"""The dense engines on CUDA compute the plain network.

Here cuDNN's fused operators are replaced by their definition.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from models.benchmark.gpu import dense_torch
from models.benchmark.gpu.dense_torch import DenseTorch, Form, fold_batch_norm
from models.engines.torch.reference import ReferenceEngine
from models.evaluation.forced_routes import random_network
from models.network import SkipNet


def make_network(architecture: str) -> SkipNet:
    """Return a random network whose batch norms are not the identity."""
    torch.manual_seed(0)
    network = random_network(architecture)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


class CudnnOnCpu(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes cuDNN's fused operators from other operators, with the same arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fused = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.cudnn_convolution_relu.default:
            x, weight, bias, stride, padding, dilation, groups = args
            self.fused += 1
            return functional.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()
        if func is torch.ops.aten.cudnn_convolution_add_relu.default:
            x, weight, z, alpha, bias, stride, padding, dilation, groups = args
            self.fused += 1
            return (functional.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * z).relu()
        return func(*args, **(kwargs or {}))


def run(network: SkipNet, form: Form, images: Any) -> Any:
    return DenseTorch(network, "cpu", form, torch.float32).run(images, np.ones(len(images), np.float32))


@pytest.mark.parametrize(("architecture", "side"), [("cifar10_resnet_38", 32), ("imagenet_resnet_50", 64)])
def test_folded_and_fused_forms_equal_the_plain_network(architecture: str, side: int) -> None:
    network = make_network(architecture)
    images = np.random.default_rng(0).standard_normal((2, 3, side, side), np.float32)
    expected = ReferenceEngine(network).run(images, np.ones(2, np.float32)).logits
    scale = np.abs(expected).max()
    with CudnnOnCpu() as cudnn:
        for form in (dense_torch.operators, dense_torch.fused):
            np.testing.assert_allclose(run(network, form, images).logits / scale, expected / scale, atol=1e-4)
    residual = sum(isinstance(module, nn.Conv2d) for block in network.blocks for module in block.residual)  # type: ignore[union-attr]
    assert cudnn.fused == residual + 1
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fold_batch_norm(network).modules())


def test_a_graph_is_captured_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def forward(_: object, images: Tensor) -> Tensor:
        runs.append("run")
        return images.flatten(1)[:, :10]

    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(dense_torch, "forward_fused", forward)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: runs.append("replay")))
    engine = DenseTorch(make_network("cifar10_resnet_38"), "cpu", dense_torch.fused_graph, torch.float32)
    for count in (1, 1, 2):
        images = np.full((count, 3, 32, 32), count, np.float32)
        assert engine.run(images, np.ones(count, np.float32)).logits.shape == (count, 10)
    captured = ["run"] * (dense_torch.WARM_UP_RUNS + 1)
    assert runs == [*captured, "replay", "replay", *captured, "replay"]
