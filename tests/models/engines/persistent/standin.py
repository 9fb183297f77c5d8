"""A stand-in for the CUDA driver (cuda_driver.cpp), with which the persistent engine itself runs on a CPU."""

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock

from models.engines.persistent.build import GATES
from tests.models.engines.persistent.simulated import HERE, build, compile_program


class Seen(ctypes.Structure):
    """What the engine did: counts, and bytes of memory that are allocated now."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (*("launches", "grid", "pinned", "device", "allocations", "contexts", "waits", "outside", "races"),)
    ]


class Settings(ctypes.Structure):
    """The GPU to stand in for. ``failure`` is the driver's error for every wait."""

    _fields_ = [
        ("kernel", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("compute", "multiprocessors", "failure")),
    ]


@cache
def load_library() -> ctypes.CDLL:
    """Compile and load the stand-in: from now on cuda.bindings finds it as the driver of this process."""
    source = (HERE / "cuda_driver.cpp").read_text()
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    library = Path(tempfile.gettempdir()) / f"skipnet-standin-{os.getuid()}-{digest}.so"
    with FileLock(library.with_suffix(".lock")):
        if not library.exists():
            options = ("-std=c++17", "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
            compile_program({"cuda_driver.cpp": source}, "cuda_driver.cpp", options, library)
    loaded = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    loaded.standin_seen.restype = ctypes.POINTER(Seen)
    loaded.standin_settings.restype = ctypes.POINTER(Settings)
    loaded.standin_context.restype = ctypes.c_void_p
    return loaded


@contextmanager
def standin(gates: str | None = "rnn", computes: bool = True) -> Iterator[tuple[Seen, Settings]]:
    """Let a launch run the kernel for one kind of gate on simulated thread blocks, or nothing at all."""
    library = load_library()
    seen, settings = library.standin_seen().contents, library.standin_settings().contents
    kernel = ctypes.CDLL(str(build(GATES[gates]))).run_kernel if computes else None
    ctypes.memset(ctypes.addressof(seen), 0, ctypes.sizeof(seen))
    settings.kernel = ctypes.cast(kernel, ctypes.c_void_p) if kernel is not None else None
    settings.compute, settings.multiprocessors, settings.failure = 90, 2, 0
    yield seen, settings


def current_context() -> int | None:
    """Return the context that is current in this thread."""
    found: int | None = load_library().standin_context()
    return found
