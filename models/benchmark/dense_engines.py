"""Dense engines: engines that run the ResNet without gates and may be the fastest."""

import copy
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.benchmark.other_engines import other_engines
from models.checkpoint import Checkpoint
from models.engines.factory import build
from models.engines.protocol import Engine, Routed, plain_output
from models.macs import Mode
from models.network import SkipNet

ON_CPU: dict[str, tuple[str, Mode]] = {
    "onnxruntime, batch as one": ("onnxruntime", "mask"),
    "onnxruntime, image by image": ("onnxruntime", "branch"),
    "torch, batch as one": ("torch", "mask"),
    "native, image by image": ("native", "branch"),
    "native_int16, image by image": ("native_int16", "branch"),
}
ON_CUDA: dict[str, tuple[str, Mode]] = {
    "cuda_graph": ("cuda_graph", "mask"),
    "persistent": ("persistent", "branch"),
}
TENSORRT = "torch_tensorrt"


def dense_engines(
    checkpoint: Checkpoint, device: str, threads: int, others: bool = True
) -> dict[str, Callable[[], Engine]]:
    """Return the functions that build the dense engines of a plain ResNet, by the engines' names in tables.

    On a CPU these are our own, and with ``others`` those that a user may install instead. On CUDA these are our own,
    and engines in half precision and the channels-last layout: eager, compiled by ``torch.compile`` in mode
    max-autotune, and by TensorRT if torch_tensorrt is installed.
    """
    ours = ON_CPU if device == "cpu" else ON_CUDA
    makers: dict[str, Callable[[], Engine]] = {
        label: partial(build, checkpoint, name, device, threads, mode)
        for label, (name, mode) in ours.items()
        if name != "native_int16" or checkpoint.config.quantization is not None
    }
    if device == "cpu" and others:
        makers |= other_engines(checkpoint, threads)
    if device != "cpu":
        makers["torch, operator by operator"] = partial(DenseTorch, checkpoint.network, device)
        makers["torch.compile max-autotune"] = partial(DenseTorch, checkpoint.network, device, compile_autotuned)
        if find_spec(TENSORRT):
            makers["TensorRT"] = partial(DenseTorch, checkpoint.network, device, compile_tensorrt)
    return makers


Function = Callable[[Tensor], Tensor]


class DenseTorch:
    """A plain ResNet as a user of torch would serve it: in ``dtype`` and channels last."""

    name = "torch"

    def __init__(
        self,
        network: SkipNet,
        device: str,
        compiled: Callable[[Function], Function] = lambda function: function,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.blocks = len(network.blocks)
        self.network = copy.deepcopy(network).to(device, dtype).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.function = compiled(lambda images: self.network(images)[0])

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """See ``Engine.run``."""
        del thresholds  # A plain ResNet has no gates.
        with torch.inference_mode():
            x = torch.from_numpy(images).to(self.device).to(self.dtype, memory_format=torch.channels_last)
            return plain_output(self.function(x).float().cpu().numpy(), self.blocks, "mask")

    def close(self) -> None:
        """See ``Engine.close``."""


def compile_autotuned(function: Function) -> Function:
    return torch.compile(function, mode="max-autotune")


def compile_tensorrt(function: Function) -> Function:
    return torch.compile(function, backend=TENSORRT, dynamic=False)
