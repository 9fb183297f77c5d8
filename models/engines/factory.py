"""Build an engine by its name."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.engines.folding import FoldedNetwork, fold
from models.engines.native.engine import NativeEngine
from models.engines.protocol import Engine, EngineError, PixelEngine
from models.engines.torch.engine import TorchEngine
from models.engines.torch.reference import ReferenceEngine
from models.macs import Mode
from models.preprocessing import normalisation

MODES: dict[str, tuple[Mode, ...]] = {
    "native": ("branch",),
    "native_int16": ("branch",),
    "onnxruntime": ("branch", "mask"),
    "persistent": ("branch",),
    "cuda_graph": ("branch", "mask"),
    "torch": ("branch", "mask"),
    "reference": ("mask",),
}
"""The routing modes of every engine, by the engine's name."""
CPU_ONLY = ("native", "native_int16")
GPU_ONLY = ("persistent", "cuda_graph")


def build(
    checkpoint: Checkpoint, name: str, device: str, threads: int, mode: Mode, most_spread: int | None = None
) -> Engine:
    """Return the engine ``name`` in one routing mode. ``most_spread`` is that of a native engine, if it is known.

    Raises EngineError if it cannot run here.
    """
    if mode not in MODES[name]:
        elsewhere = GPU_ONLY if device == "cpu" else CPU_ONLY
        others = [other for other, modes in MODES.items() if mode in modes and other not in elsewhere]
        raise EngineError(f"the engine {name} has no routing {mode!r}; choose {' or '.join(others)}")
    if name in GPU_ONLY and device == "cpu":
        raise EngineError(f"the engine {name} runs on a GPU only; choose the engine auto")
    if name in CPU_ONLY and device != "cpu":
        raise EngineError(f"the engine {name} runs on the CPU only, not on {device}; choose the engine torch")
    if name == "reference":
        return ReferenceEngine(checkpoint.network, device)
    folded = fold(checkpoint.network)
    if name == "torch":
        return TorchEngine(folded, device, mode, threads)
    if name == "onnxruntime":
        # It imports onnx and onnxruntime, which a start with the native engine alone does not need.
        from models.engines.onnx.engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(folded, device, mode, threads)
    if name in CPU_ONLY:
        return build_native(checkpoint, folded, name, threads, most_spread)
    return build_on_gpu(folded, name, device, mode, normalisation(checkpoint.config.input))


def build_native(
    checkpoint: Checkpoint, folded: FoldedNetwork, name: str, threads: int, most_spread: int | None = None
) -> NativeEngine:
    """Return the native engine, in float32 or in 16-bit integers.

    Without ``most_spread``, it is measured for which batches an image is spread over the cores.
    """
    limits = None
    if name == "native_int16":
        quantization = checkpoint.config.quantization
        if quantization is None:
            raise EngineError(
                "the engine native_int16 runs quantised versions only: make one with skipnet quantize, or choose the "
                "engine native"
            )
        limits = tuple(map(tuple, quantization.activation_limits))
    engine = NativeEngine(folded, threads, limits)
    if most_spread is None:
        engine.measure_spreading(checkpoint.config.input.height, checkpoint.config.input.width)
    else:
        engine.most_spread = most_spread
    return engine


def build_on_gpu(folded: FoldedNetwork, name: str, device: str, mode: Mode, scales: NDArray[np.float32]) -> PixelEngine:
    """Return an engine that needs a GPU. Its modules are imported here, so that a CPU needs no CUDA library."""
    from models.engines.cuda_graph import engine as cuda_graph
    from models.engines.persistent import engine as persistent

    if name == "persistent":
        return persistent.PersistentEngine(folded, device, scales)
    return cuda_graph.CudaGraphEngine(folded, device, mode, normalisation=scales)


@contextmanager
def closing_on_error() -> Iterator[ExitStack]:
    """Yield a stack of engines that are closed if the `with` block fails, and kept open otherwise.

    Raises EngineError with a message of one line instead of any other exception. Compilers, drivers and libraries have
    their own exceptions.
    """
    with ExitStack() as opened:
        try:
            yield opened
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(describe(error)) from error
        opened.pop_all()


def describe(error: Exception) -> str:
    """Return an error's message as one line. The message of another library's error is prefixed with its type."""
    if isinstance(error, EngineError):
        return str(error)
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'without a message')}"
