"""The native engine: one call of C++ (native.cpp) runs a routed network, in float32 or in 16-bit integers."""

import ctypes
import math
import time
from functools import cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from models.engines.folding import FoldedNetwork
from models.engines.native.build import find_library, unavailable
from models.engines.native.layout import ActivationLimits, Layout
from models.engines.protocol import Routed, check_batch
from models.gates import Limits

SPREADING_RUNS = 4
OUT_OF_MEMORY, TOO_SMALL = 1, 2
"""Status codes of skipnet_run in native.cpp."""


class NativeEngine:
    """Run a folded network on up to ``threads`` cores. An image's output depends on neither batch nor threads.

    With ``limits``, the largest magnitudes of the activations (``activation_limits.py``), the blocks' convolutions
    multiply 16-bit integers. The stem, the gates and the head stay in float32.
    Batches of up to ``most_spread`` images spread each image over all cores. In larger ones, each image has one core.

    ``convolutions`` [N, B] counts the convolutions that the last run computed in each block: those of the residual
    branch if it was executed, and the projection.
    Raises EngineError if the library cannot be compiled or loaded, or has no code for a part of the network.
    """

    device = "cpu"

    def __init__(self, folded: FoldedNetwork, threads: int, limits: ActivationLimits | None = None) -> None:
        self.name = "native" if limits is None else "native_int16"
        self.threads = threads
        self.most_spread = 0
        self.block_count = len(folded.blocks)
        self.classes = len(folded.head_bias)
        self.convolutions: NDArray[np.int32] = np.zeros((0, self.block_count), np.int32)
        layout = Layout(folded, limits)
        self.library = load_library()
        integers = np.asarray(layout.integers, np.int32)
        numbers = np.concatenate(layout.numbers)
        # The threads and maps of a network serve one call at a time, and no call may outlive it.
        self.lock = Lock()
        self.handle = self.library.skipnet_create(integers.ctypes, numbers.ctypes)
        if not self.handle:
            raise MemoryError("no memory for the network's weights")

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run a batch, as ``Engine.run`` does.

        Raises ValueError for images of another shape, or too small for the network's gates.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"images have the shape {images.shape}, not (N, 3, height, width)")
        check_batch(images, thresholds)
        count, _, height, width = images.shape
        images = np.ascontiguousarray(images, np.float32)
        limits = Limits.of(thresholds).probabilities.numpy()
        logits = np.empty((count, self.classes), np.float32)
        probability = np.empty((count, self.block_count - 1), np.float32)
        executed = np.empty((count, self.block_count - 1), np.bool_)
        convolutions = np.empty((count, self.block_count), np.int32)
        spreads = count <= self.most_spread
        outputs = (logits.ctypes, probability.ctypes, executed.ctypes, convolutions.ctypes)
        with self.lock:
            if not self.handle:
                raise ValueError("the engine is closed")
            status = self.library.skipnet_run(
                self.handle, self.threads, spreads, images.ctypes, limits.ctypes, count, height, width, *outputs
            )
        self.convolutions = convolutions
        if status == TOO_SMALL:
            raise ValueError(f"images of {height} x {width} pixels are too small for the network's gates")
        if status == OUT_OF_MEMORY:
            raise MemoryError(f"no memory for images of {height} x {width} pixels")
        return Routed(logits, executed, probability, "branch")

    def measure_spreading(self, height: int, width: int) -> None:
        """Set ``most_spread`` by measuring one image on one core and on all cores, with every block executed.

        Several images on one core each take about as long as one image. So n images are spread if an image on all cores
        takes less than 1/n of the time on one core.
        """
        if self.threads == 1:
            return
        image, threshold = np.zeros((1, 3, height, width), np.float32), np.zeros(1, np.float32)
        best = {0: math.inf, 1: math.inf}
        for _ in range(SPREADING_RUNS):
            for self.most_spread in best:
                start = time.perf_counter()
                self.run(image, threshold)
                best[self.most_spread] = min(best[self.most_spread], time.perf_counter() - start)
        self.most_spread = min(math.ceil(best[0] / best[1]) - 1, self.threads - 1)

    def close(self) -> None:
        """Release the network's memory after a running call has ended. A second call does nothing."""
        with self.lock:
            if self.handle:
                self.library.skipnet_destroy(self.handle)
                self.handle = None

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.close()


@cache
def load_library() -> ctypes.CDLL:
    """Return the compiled native.cpp.

    Raises EngineError if it cannot be compiled or loaded.
    """
    path = find_library()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise unavailable(f"the native engine's library cannot be loaded: {error}") from error
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.skipnet_create.argtypes = [pointer, pointer]
    library.skipnet_create.restype = pointer
    library.skipnet_destroy.argtypes = [pointer]
    library.skipnet_destroy.restype = None
    library.skipnet_run.argtypes = [pointer, integer, integer, pointer, pointer, *[integer] * 3, *[pointer] * 4]
    library.skipnet_run.restype = integer
    return library
