"""Pinned memory and a launch of the persistent kernel for one part of a batch."""

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.engines.persistent.build import SHARED_BYTES, THREADS
from models.engines.persistent.gpu import Gpu, call, refusal

CHUNK = 256
"""The most images of a launch. So an engine's pinned memory is bounded, and is never allocated while it serves."""
SIDE = 32
"""The side of an image in pixels. The kernel keeps whole feature maps in shared memory, which holds this size."""
POLLS = 2000
"""How often a wait polls the results before it waits without Python's lock: about 0.1 ms."""
Images = NDArray[np.float32] | NDArray[np.uint8]
Results = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]
"""Logits [N, classes], and probability and executed [N, B-1]."""


class Slot:
    """Pinned memory for ``CHUNK`` images and their results, and a launch whose arguments are prepared once.

    The kernel reads images and writes results there, so nothing is copied by the driver. Each slot has its own stream,
    so that the kernel begins with the next part while the slowest images of the last one are computed.
    """

    def __init__(
        self, gpu: Gpu, weights: Sequence[int], blocks: Sequence[int], classes: int, normalisation: int
    ) -> None:
        """``weights`` and ``normalisation`` are addresses on the GPU, ``blocks`` the numbers of the three groups."""
        self.gpu, self.stream = gpu, gpu.stream()
        decisions = sum(blocks) - 1
        self.images = gpu.pinned(CHUNK, 3, SIDE, SIDE, dtype=np.float32)
        self.pixels = self.images.view(np.uint8).ravel()[: CHUNK * SIDE * SIDE * 3].reshape(CHUNK, SIDE, SIDE, 3)
        self.thresholds = gpu.pinned(CHUNK, dtype=np.float32)
        self.logits = gpu.pinned(CHUNK, classes, dtype=np.float32)
        self.probability = gpu.pinned(CHUNK, decisions, dtype=np.float32)
        self.executed = gpu.pinned(CHUNK, decisions, dtype=np.bool_)
        done = gpu.pinned(1, dtype=np.uint32)
        done[0] = 0
        self.done = done.data  # read faster than an array
        self.address_of_normalisation = normalisation
        self.normalisation, self.ticket, self.count = ctypes.c_void_p(), ctypes.c_uint(0), ctypes.c_int()
        outputs = self.logits, self.probability, self.executed
        self.arguments = [
            ctypes.c_void_p(self.images.ctypes.data),
            self.normalisation,
            ctypes.c_void_p(self.thresholds.ctypes.data),
            *map(ctypes.c_void_p, weights),
            *(ctypes.c_void_p(array.ctypes.data) for array in outputs),
            ctypes.c_void_p(gpu.upload(np.zeros(2, np.uint32))),
            ctypes.c_void_p(done.ctypes.data),
            self.ticket,
            self.count,
            *map(ctypes.c_int, blocks),
            ctypes.c_int(classes),
        ]
        """The arguments of persistent.cu's ``route``, in its order."""
        self.pointers = (ctypes.c_void_p * len(self.arguments))(*map(ctypes.addressof, self.arguments))
        self.address = ctypes.addressof(self.pointers)

    def start(self, images: Images, thresholds: NDArray[np.float32], thread_blocks: int) -> None:
        """Launch the kernel on at most ``CHUNK`` images or decoded pixels. The GPU's context must be current."""
        self.fill(images, thresholds)
        self.launch(min(len(images), thread_blocks))

    def fill(self, images: Images, thresholds: NDArray[np.float32]) -> None:
        """Copy a part of a batch to pinned memory."""
        count = len(images)
        decoded = images.dtype == np.uint8
        (self.pixels if decoded else self.images)[:count] = images
        self.thresholds[:count] = thresholds
        self.normalisation.value = self.address_of_normalisation if decoded else None
        self.count.value = count

    def launch(self, grid: int) -> None:
        """Launch the kernel on ``grid`` thread blocks."""
        gpu = self.gpu
        self.ticket.value = self.ticket.value % 0xFFFFFFFF + 1
        (status,) = gpu.launch(gpu.kernel, grid, 1, 1, THREADS, 1, 1, SHARED_BYTES, self.stream, self.address, 0)
        if status:
            raise refusal("cuLaunchKernel", status)

    def wait(self) -> None:
        """Wait until the results are in pinned memory."""
        done, ticket = self.done, self.ticket.value
        for _ in range(POLLS):
            if done[0] == ticket:
                return
        # The driver also reports whether the kernel failed.
        call(self.gpu.driver.cuStreamSynchronize, self.stream)

    def finish(self) -> Results:
        """Wait for the results and return a copy."""
        self.wait()
        count = self.count.value
        return self.logits[:count].copy(), self.probability[:count].copy(), self.executed[:count].copy()
