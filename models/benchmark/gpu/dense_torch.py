"""Dense engines that a user of torch can make on CUDA. Routed engines should be faster than these."""

import copy
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.engines.folding import Convolution, FoldedNetwork, fold
from models.engines.protocol import Routed, plain_output
from models.engines.torch.forward import arrange, average, shortcut
from models.network import SkipNet

Function = Callable[[Tensor], Tensor]
Form = Callable[[SkipNet, str, torch.dtype], Function]
"""Make a function from images [N, 3, H, W] to logits of a network, on a device and in a precision."""

TENSORRT = "torch_tensorrt"
WARM_UP_RUNS = 3


class DenseTorch:
    """A plain ResNet in torch: batch norm folded, in ``dtype`` and channels last, with images from pinned memory."""

    name = "torch"

    def __init__(self, network: SkipNet, device: str, form: Form, dtype: torch.dtype = torch.float16) -> None:
        self.device, self.dtype, self.blocks = device, dtype, len(network.blocks)
        self.pinned = torch.empty(0)
        with torch.inference_mode():
            self.function = form(network, device, dtype)

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """See ``Engine.run``."""
        del thresholds  # A plain ResNet has no decisions.
        if self.pinned.shape != images.shape:
            self.pinned = torch.empty(images.shape, pin_memory=self.device != "cpu")
        with torch.inference_mode():
            x = self.pinned.copy_(torch.from_numpy(images)).to(self.device, non_blocking=True)
            x = x.to(self.dtype, memory_format=torch.channels_last)
            return plain_output(self.function(x).float().cpu().numpy(), self.blocks, "mask")

    def close(self) -> None:
        """See ``Engine.close``."""


def operators(network: SkipNet, device: str, dtype: torch.dtype) -> Function:
    """Run operator by operator."""
    folded = fold_batch_norm(network).to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda images: folded(images)[0]


def autotuned(network: SkipNet, device: str, dtype: torch.dtype) -> Function:
    """Compile with ``torch.compile`` in its mode max-autotune."""
    return torch.compile(operators(network, device, dtype), mode="max-autotune")


def tensorrt(network: SkipNet, device: str, dtype: torch.dtype) -> Function:
    """Compile with TensorRT."""
    return torch.compile(operators(network, device, dtype), backend=TENSORRT, dynamic=False)


def fused(network: SkipNet, device: str, dtype: torch.dtype) -> Function:
    """Run each convolution with its bias, the sum and the ReLU after it as one operator of cuDNN."""
    folded = arrange(fold(network), device, dtype)
    return lambda images: forward_fused(folded, images)


def fused_graph(network: SkipNet, device: str, dtype: torch.dtype) -> Function:
    """Capture ``fused`` as a CUDA graph for each shape of its input."""
    function = fused(network, device, dtype)
    captured: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def replay(images: Tensor) -> Tensor:
        if images.shape not in captured:
            captured[images.shape] = capture(function, images.clone())
        graph, given, output = captured[images.shape]
        given.copy_(images)
        graph.replay()
        return output

    return replay


def capture(function: Function, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
    """Return a CUDA graph of ``function``, the tensor that it reads, which is ``images``, and its output."""
    stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            function(images)
    torch.cuda.current_stream(images.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(images)
    return graph, images, output


def fold_batch_norm(network: SkipNet) -> SkipNet:
    """Return a copy in evaluation mode with each batch norm folded into the convolution before it."""
    folded = copy.deepcopy(network).eval()
    for layers in folded.modules():
        if not isinstance(layers, nn.Sequential):
            continue
        for index, (before, after) in enumerate(pairwise(list(layers))):
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                layers[index], layers[index + 1] = fuse_conv_bn_eval(before, after), nn.Identity()
    return folded


def forward_fused(network: FoldedNetwork, images: Tensor) -> Tensor:
    """Return the logits of a plain network. Every ReLU is part of the convolution before it."""
    x = convolve_relu(images, network.stem)
    if network.stem_pools:
        x = functional.max_pool2d(x, 3, 2, 1)
    for block in network.blocks:
        *first, last = block.residual
        skip, y = shortcut(block, x), x
        for convolution in first:
            y = convolve_relu(y, convolution)
        x = torch.cudnn_convolution_add_relu(y, last.weight, skip, 1.0, last.bias, *geometry(last))
    return functional.linear(average(x), network.head_weight, network.head_bias)


def convolve_relu(x: Tensor, convolution: Convolution) -> Tensor:
    return torch.cudnn_convolution_relu(x, convolution.weight, convolution.bias, *geometry(convolution))


def geometry(convolution: Convolution) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
    """Return a convolution's stride, padding, dilation and groups."""
    return (convolution.stride,) * 2, (convolution.padding,) * 2, (1, 1), 1
