"""Use a GPU through the CUDA driver: memory, and launches with arguments that are prepared once.

cuda-core would prepare them again at every launch, which takes longer than a block of the network.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.engines.persistent.build import SHARED_BYTES, THREADS, compile_kernel, kernel_name
from models.engines.protocol import EngineError
from models.errors import install_command

LEAST_COMPUTE = 80


class Gpu:
    """One GPU with the kernel for one kind of gate.

    It uses the GPU's primary context, as torch does. Every method leaves the thread's current context as it was.
    Raises EngineError if the library, the driver, the compiler or the GPU does not allow it.
    """

    def __init__(self, index: int, gates: str | None) -> None:
        self.driver = driver = find_driver()
        self.launch = driver.cuLaunchKernel
        call(driver.cuInit, 0)
        self.device = call(driver.cuDeviceGet, index)
        attributes = driver.CUdevice_attribute
        major = self.attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        minor = self.attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        if 10 * major + minor < LEAST_COMPUTE:
            raise EngineError(
                f"the persistent engine needs a GPU of compute capability 8.0 or more, not {major}.{minor}; "
                "choose the engine torch"
            )
        code, _ = compile_kernel(gates, f"sm_{major}{minor}")
        self.owned: list[tuple[Callable[..., Any], Any]] = []
        self.context = call(driver.cuDevicePrimaryCtxRetain, self.device)
        self.owned.append((driver.cuDevicePrimaryCtxRelease, self.device))
        try:
            with self.current():
                self.kernel = self.load(bytes(code.code), code.symbol_mapping[kernel_name(gates)])
                resident = call(driver.cuOccupancyMaxActiveBlocksPerMultiprocessor, self.kernel, THREADS, SHARED_BYTES)
        except EngineError:
            self.close()
            raise
        self.thread_blocks = resident * self.attribute(attributes.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)

    def attribute(self, which: Any) -> int:
        found: int = call(self.driver.cuDeviceGetAttribute, which, self.device)
        return found

    def load(self, cubin: bytes, name: bytes) -> Any:
        """Load the kernel, and allow it more than 48 KB of shared memory per thread block."""
        library = call(self.driver.cuLibraryLoadData, cubin, [], [], 0, [], [], 0)
        self.owned.append((self.driver.cuLibraryUnload, library))
        kernel = call(self.driver.cuLibraryGetKernel, library, name)
        attribute = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call(self.driver.cuKernelSetAttribute, attribute, SHARED_BYTES, kernel, self.device)
        # A launch takes a kernel in place of a function, and its stream's context.
        return self.driver.CUfunction(int(kernel))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU's context current in this thread within a block."""
        call(self.driver.cuCtxPushCurrent, self.context)
        try:
            yield
        finally:
            call(self.driver.cuCtxPopCurrent)

    def upload(self, words: NDArray[Any]) -> int:
        """Copy an array to the GPU and return its address there."""
        with self.current():
            address = call(self.driver.cuMemAlloc, words.nbytes)
            self.owned.append((self.driver.cuMemFree, address))
            call(self.driver.cuMemcpyHtoD, address, words.ctypes.data, words.nbytes)
            # The copy may still be running, and the streams of launches do not wait for it.
            call(self.driver.cuCtxSynchronize)
        return int(address)

    def pinned(self, *shape: int, dtype: type[np.generic]) -> NDArray[Any]:
        """Return an array in pinned host memory, which the kernel accesses at the same address."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        flags = self.driver.CU_MEMHOSTALLOC_PORTABLE | self.driver.CU_MEMHOSTALLOC_DEVICEMAP
        with self.current():
            address = call(self.driver.cuMemHostAlloc, size, flags)
        self.owned.append((self.driver.cuMemFreeHost, address))
        memory: Any = (ctypes.c_byte * size).from_address(int(address))
        return np.frombuffer(memory, dtype).reshape(shape)

    def stream(self) -> Any:
        with self.current():
            stream = call(self.driver.cuStreamCreate, self.driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.owned.append((self.driver.cuStreamDestroy, stream))
        return stream

    def close(self) -> None:
        """Release the memory, the most recent first. Arrays in pinned memory must not be used afterwards."""
        call(self.driver.cuCtxPushCurrent, self.context)
        while len(self.owned) > 1:
            release, what = self.owned.pop()
            release(what)
        call(self.driver.cuCtxPopCurrent)
        for release, what in self.owned:
            release(what)
        self.owned = []


def find_driver() -> Any:
    """Return the module of the driver's functions. Raises EngineError if it is not installed."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise EngineError(f"the persistent engine needs cuda-bindings ({error}): {install_command('cuda')}") from error
    return driver


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function of the driver and return its result. Raises EngineError if the driver refuses."""
    try:
        status, *values = function(*arguments)
    except RuntimeError as error:  # the driver, or this function in it, is missing
        raise EngineError(f"the persistent engine needs a GPU and its driver: {error}") from error
    if status:
        raise refusal(function.__name__, status)
    return values[0] if values else None


def refusal(name: str, status: Any) -> EngineError:
    return EngineError(f"the CUDA driver refuses {name}: {status.name}")
