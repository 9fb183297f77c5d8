"""Start the servers under load as processes: this service, the proxy in front of it, and its peers."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from models import SHIPPED

ROOT = Path(__file__).parents[2]


class Server:
    """A server process; `end` also stops its child processes."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
                start_new_session=True,
            )

    def wait_ready(self, url: str, seconds: float = 120) -> None:
        """Wait until ``url`` responds with 200.

        Raises RuntimeError after ``seconds``.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=2) as response:
                    if response.status == 200:
                        return
            except OSError:
                pass
            time.sleep(0.1)
        self.end()
        raise RuntimeError(f"the server did not start: {self.log.read_text()[-300:]}")

    def end(self) -> None:
        for sig in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sig)
                self.process.wait(15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def cpu(self) -> float:
        """Return the processor time of the process in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> float:
        """Return the resident memory of the process in MiB."""
        return int(Path(f"/proc/{self.process.pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


class Ours(Server):
    """`skipnet serve` on a free port, ready for requests."""

    def __init__(self, log: Path, *options: str) -> None:
        super().__init__([sys.executable, "-m", "service.cli.main", "serve", "--port", "0", *options], log)
        address, end = re.compile(r"address=http://[^:]+:(\d+)"), time.monotonic() + 60
        while (found := address.search(log.read_text())) is None:
            if self.process.poll() is not None or time.monotonic() > end:
                self.end()
                raise RuntimeError(f"the server did not start: {log.read_text()[-300:]}")
            time.sleep(0.05)
        self.port = int(found[1])
        # The server is ready before the last model is loaded.
        for model in [folder.name for folder in SHIPPED.iterdir() if folder.is_dir()]:
            self.wait_ready(f"http://127.0.0.1:{self.port}/v2/models/{model}/ready")

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as result:
            lines = result.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"skipnet_{name}[ {{]", line))


class Proxy(Server):
    """The HAProxy of `deploy/haproxy` with its defaults, in front of a port."""

    def __init__(self, log: Path, upstream: int) -> None:
        self.port = free_port()
        program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            raise RuntimeError("haproxy is not installed; install Debian's package haproxy")
        super().__init__(
            [program, "-f", str(ROOT / "deploy/haproxy/haproxy.cfg")],
            log,
            SKIPNET_BACKEND=f"127.0.0.1:{upstream}",
            SKIPNET_BIND=f"127.0.0.1:{self.port}",
            SKIPNET_PROXY_METRICS=f"127.0.0.1:{free_port()}",
        )
        self.wait_ready(f"http://127.0.0.1:{self.port}/health/ready")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def peers(python: Path, port: int) -> dict[str, list[str]]:
    """Return the command that starts each peer with the Python of the peers' environment."""
    modules = "service.benchmark.peers"
    return {
        "LitServe": [str(python), "-m", f"{modules}.litserve_app", str(port)],
        "BentoML": [
            *(str(python), "-m", "bentoml", "serve", f"{modules}.bentoml_app:Dense"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        "Ray Serve": [str(python), "-m", f"{modules}.rayserve_app", str(port)],
    }
