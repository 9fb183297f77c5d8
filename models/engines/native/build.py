"""Compiles the native engine (native.cpp) for the kind of CPU at hand.

``python -m models.engines.native.build`` compiles it beside the source for every kind of CPU of this
machine's architecture: for container images, which need no compiler then and run on other machines than the
one that built them.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from models.engines.protocol import EngineError

SOURCE = Path(__file__).with_name("native.cpp")
HEADERS = sorted(SOURCE.parent.glob("*.hpp"))
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
PORTABLE = ("-static-libstdc++", "-static-libgcc")
"""Slim container images have no C++ runtime library; the linkers of other systems than Linux lack these flags."""

X86_FEATURES = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"},
    "x86-64": set(),
}
"""Kinds of x86 CPU, fastest first, and the features (as Linux names them) that they need."""


class NativeUnavailable(EngineError):
    """The native engine cannot run on this machine; the message says why and what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}. Or choose the engine onnxruntime")


def find_library() -> Path:
    """Return the library for this CPU: the one beside the source, or in the user's cache, compiled if need be.

    Raises NativeUnavailable where there is none and it cannot be compiled.
    """
    kind = cpu_kinds()[0]
    shipped = SOURCE.with_name(library_name(kind))
    if shipped.exists():
        return shipped
    cached = cache_folder() / library_name(kind)
    if not cached.exists():
        compile_library(kind, cached)
    return cached


def cpu_kinds() -> list[str]:
    """Return the kinds of CPU that this machine can run, fastest first."""
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        return [machine]
    features = cpu_features()
    return [kind for kind, needed in X86_FEATURES.items() if needed <= features]


def cpu_features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())


def flags(kind: str) -> tuple[str, ...]:
    """Return the compiler's options for a kind of CPU."""
    portable = PORTABLE if platform.system() == "Linux" else ()
    if kind not in X86_FEATURES:
        return (*FLAGS, *portable)
    # GCC prefers 256 bits on its own even where 512 are faster.
    wide = ("-mprefer-vector-width=512",) if kind == "x86-64-v4" else ()
    return (*FLAGS, *portable, f"-march={kind}", *wide)


def library_name(kind: str) -> str:
    """Return a file name that changes with the source and the options, so that no stale library is loaded."""
    parts = *(file.read_bytes() for file in (SOURCE, *HEADERS)), " ".join(flags(kind)).encode()
    return f"native-{kind}-{hashlib.sha256(b''.join(parts)).hexdigest()[:12]}.so"


def cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skipnet"
    except RuntimeError as error:
        reason = "this user has no home folder to compile the native engine into: set XDG_CACHE_HOME"
        raise NativeUnavailable(reason) from error


def compile_library(kind: str, library: Path) -> None:
    """Compile the source for a kind of CPU into ``library``; NativeUnavailable says what went wrong."""
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        raise NativeUnavailable(
            f"the native engine is not compiled and there is no C++ compiler {compiler!r}: install g++ or clang, "
            "or name one in the environment variable CXX"
        )
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            # Compiled aside and renamed: another process never loads half a library.
            made = Path(folder) / library.name
            command = [compiler, *flags(kind), str(SOURCE), "-I", str(HEADERS[0].parent), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            made.replace(library)
    except OSError as error:
        raise NativeUnavailable(f"the native engine cannot be compiled into {library.parent}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailable(f"compiling the native engine took longer than {error.timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        reason = next(iter(error.stderr.strip().splitlines()), "no message")
        raise NativeUnavailable(f"{compiler} failed to compile the native engine: {reason}") from error


def main() -> None:
    machine = platform.machine().lower()
    for kind in X86_FEATURES if machine in ("x86_64", "amd64") else (machine,):
        library = SOURCE.with_name(library_name(kind))
        compile_library(kind, library)
        sys.stdout.write(f"{library}\n")


if __name__ == "__main__":
    main()
