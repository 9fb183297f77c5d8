"""Dense engines: engines that run the ResNet without gates and may be the fastest."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from models.benchmark.gpu import dense_torch
from models.benchmark.other_engines import other_engines
from models.checkpoint import Checkpoint
from models.engines.factory import build
from models.engines.protocol import Engine
from models.macs import Mode

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
TORCH_ON_CUDA: dict[str, dense_torch.Form] = {
    "torch, operator by operator": dense_torch.operators,
    "torch, fused cuDNN": dense_torch.fused,
    "torch, fused cuDNN in a CUDA graph": dense_torch.fused_graph,
    "torch.compile max-autotune": dense_torch.autotuned,
    "TensorRT": dense_torch.tensorrt,
}
"""All have folded batch norm, half precision, the channels-last layout and input from pinned memory."""


def dense_engines(
    checkpoint: Checkpoint, device: str, threads: int, others: bool = True
) -> dict[str, Callable[[], Engine]]:
    """Return the functions that build the dense engines of a plain ResNet, by the engines' names in tables.

    On a CPU these are our own, and with ``others`` those that a user may install instead. On CUDA these are our own,
    and the forms of ``TORCH_ON_CUDA``. TensorRT is one of them if torch_tensorrt is installed.
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
        makers |= {
            label: partial(dense_torch.DenseTorch, checkpoint.network, device, form)
            for label, form in TORCH_ON_CUDA.items()
            if form is not dense_torch.tensorrt or find_spec(dense_torch.TENSORRT)
        }
    return makers
