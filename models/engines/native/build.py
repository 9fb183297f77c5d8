"""Compile the native engine (native.cpp) for the CPU of this machine.

``python -m models.engines.native.build`` compiles it beside the source for every CPU level of this machine's
architecture. Container images do this, so that they need no compiler and run on other CPUs than the build machine's.
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
"""Slim container images have no C++ runtime library. Only Linux linkers have these flags."""

X86_FEATURES = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"},
    "x86-64": set(),
}
"""The x86-64 levels, fastest first, with the CPU features that they need, as Linux names them."""


def find_library() -> Path:
    """Return the library for this CPU, from the source's folder or from the user's cache. Compile it if necessary.

    Raises EngineError if it cannot be compiled.
    """
    level = cpu_levels()[0]
    shipped = SOURCE.with_name(library_name(level))
    if shipped.exists():
        return shipped
    cached = cache_folder() / library_name(level)
    if not cached.exists():
        compile_library(level, cached)
    return cached


def cpu_levels() -> list[str]:
    """Return the CPU levels that this machine can run, fastest first."""
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        return [machine]
    features = cpu_features()
    return [level for level, needed in X86_FEATURES.items() if needed <= features]


def cpu_features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())


def flags(level: str) -> tuple[str, ...]:
    """Return the compiler's options for a CPU level."""
    portable = PORTABLE if platform.system() == "Linux" else ()
    if level not in X86_FEATURES:
        return (*FLAGS, *portable)
    # By default GCC prefers vectors of 256 bits, even if 512 bits are faster.
    vectors = ("-mprefer-vector-width=512",) if level == "x86-64-v4" else ()
    return (*FLAGS, *portable, f"-march={level}", *vectors)


def library_name(level: str) -> str:
    """Return a file name that changes with the source and the options, so that no stale library is loaded."""
    parts = *(file.read_bytes() for file in (SOURCE, *HEADERS)), " ".join(flags(level)).encode()
    return f"native-{level}-{hashlib.sha256(b''.join(parts)).hexdigest()[:12]}.so"


def unavailable(reason: str) -> EngineError:
    return EngineError(f"{reason}. Or choose the engine onnxruntime")


def cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skipnet"
    except RuntimeError as error:
        reason = "this user has no home folder to compile the native engine into: set XDG_CACHE_HOME"
        raise unavailable(reason) from error


def compile_library(level: str, library: Path) -> None:
    """Compile the source for a CPU level into ``library``.

    Raises EngineError with the compiler's message.
    """
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        raise unavailable(
            f"the native engine is not compiled and there is no C++ compiler {compiler!r}: install g++ or clang, "
            "or name one in the environment variable CXX"
        )
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            # The library is compiled to another path and renamed, so that no process loads an incomplete file.
            made = Path(folder) / library.name
            command = [compiler, *flags(level), str(SOURCE), "-I", str(HEADERS[0].parent), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            made.replace(library)
    except OSError as error:
        raise unavailable(f"the native engine cannot be compiled into {library.parent}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise unavailable(f"compiling the native engine took longer than {error.timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        reason = next(iter(error.stderr.strip().splitlines()), "no message")
        raise unavailable(f"{compiler} failed to compile the native engine: {reason}") from error


def main() -> None:
    machine = platform.machine().lower()
    for level in X86_FEATURES if machine in ("x86_64", "amd64") else (machine,):
        library = SOURCE.with_name(library_name(level))
        compile_library(level, library)
        sys.stdout.write(f"{library}\n")


if __name__ == "__main__":
    main()
