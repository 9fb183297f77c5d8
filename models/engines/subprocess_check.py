"""Check an engine in a subprocess: ``python -m models.engines.subprocess_check FOLDER ENGINE DEVICE MODE``.

A faulty GPU kernel can harm the process. After an access to an illegal address, the process can no longer use its GPU.
A barrier that one thread misses never returns. So engines with such kernels run in a subprocess first.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from models.engines.protocol import EngineError

LIMIT_S = 180.0
"""Seconds of a check. Compilation, capture and the reference engine on a slow CPU take tens of seconds."""
KILL_WAIT_S = 5.0


TAKEN = ("busy or unavailable", "CUDA_ERROR_DEVICE_UNAVAILABLE")
"""The message of torch and the driver in a second process, if the GPU's compute mode is EXCLUSIVE_PROCESS."""


class DeviceTaken(EngineError):
    """Another process uses the GPU, so the check could not run."""


def check_in_subprocess(folder: Path, name: str, device: str, mode: str) -> None:
    """Compare an engine with the reference engine in a subprocess, on the checkpoint in ``folder``.

    Raises EngineError with the reason in one line if the outputs differ, the engine cannot run, or the process died or
    hung. Raises DeviceTaken if this process uses the GPU and no other may use it.
    """
    run_check([sys.executable, "-m", "models.engines.subprocess_check", str(folder), name, device, mode], LIMIT_S)


def run_check(command: list[str], limit_s: float) -> None:
    """Run the check ``command``.

    Raises EngineError if it fails or takes longer than ``limit_s`` seconds. Raises DeviceTaken if it could not use the
    GPU.
    """
    with TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            # A process that hangs in the driver may not end. The server must not wait for it.
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILL_WAIT_S)
            raise EngineError(f"its check hung and was killed after {limit_s:g} s") from error
        stderr.seek(0)
        lines = [line.strip() for line in stderr if line.strip()]
    if status < 0:
        raise EngineError(f"its check was killed by signal {-status}")
    if status > 0:
        reason = lines[-1] if lines else f"its check exited with status {status}"
        raise (DeviceTaken if any(phrase in reason for phrase in TAKEN) else EngineError)(reason)


def main(folder: str, name: str, device: str, mode: str) -> None:
    from models.checkpoint import read_checkpoint
    from models.engines.factory import build, describe
    from models.engines.verification import Verification

    try:
        checkpoint = read_checkpoint(Path(folder))
        Verification(checkpoint).check(build(checkpoint, name, device, 1, "mask" if mode == "mask" else "branch"))
    except Exception as error:
        sys.exit(describe(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
