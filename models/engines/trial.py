"""A trial of an engine in a process of its own: ``python -m models.engines.trial FOLDER ENGINE DEVICE MODE``.

A faulty kernel takes more down than itself: after an illegal address a process can use its GPU no more, and a barrier
that one thread never reaches does not return. So an engine that this could happen to runs elsewhere first.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from models.engines.protocol import EngineError

LIMIT_S = 180.0
"""Compiling the kernel, recording graphs and the reference on a slow CPU take seconds."""
LAST_WORDS_S = 5.0


def try_apart(folder: Path, name: str, device: str, mode: str) -> None:
    """Have an engine answer for the checkpoint in ``folder`` as the reference does, in a process of its own.

    Raises EngineError with the reason in one line: it disagrees, cannot be had, died, or hung.
    """
    conduct([sys.executable, "-m", "models.engines.trial", str(folder), name, device, mode], LIMIT_S)


def conduct(command: list[str], limit_s: float) -> None:
    """Run a trial. Raises EngineError where it does not end well within ``limit_s``."""
    with TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            # A process that hangs in the driver may not die: the server must not wait for it.
            with suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS_S)
            raise EngineError(f"its trial hung, and was ended after {limit_s:g} s") from error
        said.seek(0)
        words = [line.strip() for line in said if line.strip()]
    if status < 0:
        raise EngineError(f"its trial died of signal {-status}")
    if status > 0:
        raise EngineError(words[-1] if words else f"its trial ended with status {status}")


def main(folder: str, name: str, device: str, mode: str) -> None:
    from models.checkpoint import read_checkpoint
    from models.engines.selection import build, describe
    from models.engines.verification import Verification

    try:
        checkpoint = read_checkpoint(Path(folder))
        Verification(checkpoint).check(build(checkpoint, name, device, 1, "mask" if mode == "mask" else "branch"))
    except Exception as error:
        sys.exit(describe(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
