"""The native engine: a whole routed network in one call of C++ (native.cpp), one CPU core per image."""

import ctypes
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.engines.folding import Convolution, ConvolutionalGate, FoldedNetwork, RecurrentGate
from models.engines.native.build import NativeUnavailable, find_library
from models.engines.protocol import Routed, check_batch, strict_thresholds
from models.gates import RNN_WIDTH

__all__ = ["NativeEngine", "NativeUnavailable"]

UNITS = 16
"""The LSTM's units, padded with zeros to whole vector registers; native.cpp has the same constant."""
OUT_OF_MEMORY, TOO_SMALL = 1, 2


class NativeEngine:
    """Runs a folded network on up to ``threads`` cores; an image's answer does not depend on batch or threads.

    ``convolutions`` [N, B] counts what the last run computed in each block: the residual branch's convolutions
    where executed, and the projection. Raises NativeUnavailable where the library cannot be had.
    """

    name = "native"
    device = "cpu"

    def __init__(self, folded: FoldedNetwork, threads: int) -> None:
        self.threads = threads
        self.block_count = len(folded.blocks)
        self.classes = len(folded.head_bias)
        self.convolutions: NDArray[np.int32] = np.zeros((0, self.block_count), np.int32)
        self.library = load_library()
        layout = Layout()
        layout.network(folded)
        integers = np.asarray(layout.integers, np.int32)
        numbers = np.concatenate(layout.numbers)
        self.handle = self.library.skipnet_create(integers.ctypes, numbers.ctypes)
        if not self.handle:
            raise MemoryError("no memory for the network's weights")

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """See Engine.run. Raises ValueError for images of another shape, or too small for the network's gates."""
        if not self.handle:
            raise ValueError("the engine is closed")
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"images have the shape {images.shape}, not (N, 3, height, width)")
        check_batch(images, thresholds)
        count, _, height, width = images.shape
        images = np.ascontiguousarray(images, np.float32)
        thresholds = strict_thresholds(thresholds)
        logits = np.empty((count, self.classes), np.float32)
        probability = np.empty((count, self.block_count - 1), np.float32)
        executed = np.empty((count, self.block_count - 1), np.bool_)
        self.convolutions = np.empty((count, self.block_count), np.int32)
        outputs = (logits.ctypes, probability.ctypes, executed.ctypes, self.convolutions.ctypes)
        status = self.library.skipnet_run(
            self.handle, self.threads, images.ctypes, thresholds.ctypes, count, height, width, *outputs
        )
        if status == TOO_SMALL:
            raise ValueError(f"images of {height} x {width} pixels are too small for the network's gates")
        if status == OUT_OF_MEMORY:
            raise MemoryError(f"no memory for images of {height} x {width} pixels")
        return Routed(logits, executed, probability, "branch")

    def close(self) -> None:
        if self.handle:
            self.library.skipnet_destroy(self.handle)
            self.handle = None

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.close()


@cache
def load_library() -> ctypes.CDLL:
    """Load native.cpp, compiled; NativeUnavailable says why that is impossible."""
    path = find_library()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"the native engine's library cannot be loaded: {error}") from error
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.skipnet_create.argtypes = [pointer, pointer]
    library.skipnet_create.restype = pointer
    library.skipnet_destroy.argtypes = [pointer]
    library.skipnet_destroy.restype = None
    library.skipnet_run.argtypes = [pointer, integer, pointer, pointer, *[integer] * 3, *[pointer] * 4]
    library.skipnet_run.restype = integer
    return library


class Layout:
    """A folded network as two flat arrays, in the order in which native.cpp's read_… functions take them."""

    def __init__(self) -> None:
        self.integers: list[int] = []
        self.numbers: list[NDArray[np.float32]] = []

    def network(self, folded: FoldedNetwork) -> None:
        self.convolution(folded.stem)
        self.integers += [folded.stem_pools, len(folded.blocks)]
        for block in folded.blocks:
            self.convolutions(block.residual)
            self.convolutions(() if block.projection is None else (block.projection,))
        recurrent = [gate for gate in folded.gates if isinstance(gate, RecurrentGate)]
        convolutional = [gate for gate in folded.gates if isinstance(gate, ConvolutionalGate)]
        self.integers += [len(recurrent), len(convolutional)]
        for lstm in recurrent:
            self.recurrent_gate(lstm)
        for gate in convolutional:
            self.convolutional_gate(gate)
        classes, channels = folded.head_weight.shape
        self.integers += [channels, classes]
        self.append(folded.head_weight.T, folded.head_bias)

    def convolutions(self, convolutions: tuple[Convolution, ...]) -> None:
        self.integers.append(len(convolutions))
        for convolution in convolutions:
            self.convolution(convolution)

    def convolution(self, convolution: Convolution) -> None:
        outputs, inputs, kernel, _ = convolution.weight.shape
        self.integers += [inputs, outputs, kernel, convolution.stride]
        self.append(convolution.weight, convolution.bias)

    def recurrent_gate(self, gate: RecurrentGate) -> None:
        self.integers.append(gate.weight.shape[1])
        unused = UNITS - RNN_WIDTH
        recurrent = torch.nn.functional.pad(pad_parts(gate.recurrent), (0, 0, 0, unused))
        readout = torch.nn.functional.pad(gate.readout, (0, unused))
        self.append(pad_parts(gate.weight), pad_parts(gate.bias[:, None]), recurrent, readout)
        self.append(torch.tensor([gate.readout_bias]))

    def convolutional_gate(self, gate: ConvolutionalGate) -> None:
        self.integers.append(gate.pools)
        self.convolutions(gate.convolutions)
        self.append(gate.weight, torch.tensor([gate.bias]))

    def append(self, *tensors: Tensor) -> None:
        self.numbers += [tensor.detach().to(torch.float32).reshape(-1).numpy() for tensor in tensors]


def pad_parts(weight: Tensor) -> Tensor:
    """Return LSTM weights [40, C] as [C, 64]: each of the four parts padded from 10 units to 16."""
    parts = weight.reshape(4, RNN_WIDTH, -1)
    return torch.nn.functional.pad(parts, (0, 0, 0, UNITS - RNN_WIDTH)).reshape(4 * UNITS, -1).T
