"""Measure the time until `skipnet serve` is ready, and its memory: `python -m service.benchmark.startup`.

The first start has an empty cache of engine choices and a compiled native engine. The later ones find the choices.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from models import SHIPPED
from service.benchmark.servers import Server

STARTS = 4
IMPORTS = "import torch, onnxruntime, fastapi"


def main() -> None:
    imports = [seconds_of([sys.executable, "-c", IMPORTS]) for _ in range(3)]
    report: dict[str, object] = {"processor cores": os.cpu_count(), "import_seconds": statistics.median(imports)}
    with TemporaryDirectory() as folder:
        cache = Path(folder) / "skipnet"
        cache.mkdir()
        for library in (Path.home() / ".cache/skipnet").glob("native-*.so"):
            (cache / library.name).symlink_to(library)
        report["starts"] = [start(Path(folder)) for _ in range(STARTS)]
    print(json.dumps(report, indent=1))


def seconds_of(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return round(time.perf_counter() - began, 2)


def start(folder: Path) -> dict[str, float]:
    """Start the service with the shipped models.

    Return the seconds until it is ready and until all models are, and MiB.
    """
    log, began = folder / "log", time.perf_counter()
    command = [sys.executable, "-m", "service.cli.main", "serve", "--port", "0"]
    server = Server(command, log, XDG_CACHE_HOME=str(folder))
    try:
        while (found := re.search(r"address=(http://\S+)", log.read_text())) is None:
            assert server.process.poll() is None, log.read_text()
            time.sleep(0.01)
        wait(f"{found[1]}/health/ready")
        ready = time.perf_counter() - began
        for model in SHIPPED.iterdir():
            if model.is_dir():
                wait(f"{found[1]}/v2/models/{model.name}/ready")
        everything = time.perf_counter() - began
        resident = server.resident()
    finally:
        server.end()
    return {"ready_seconds": round(ready, 2), "all_seconds": round(everything, 2), "resident_mib": round(resident)}


def wait(url: str) -> None:
    """Wait until a probe succeeds."""
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            time.sleep(0.02)


if __name__ == "__main__":
    main()
