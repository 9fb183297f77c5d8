"""The HAProxy of `deploy/haproxy` in front of a running server."""

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx

from tests.ports import free_port
from tests.programs import program
from tests.service.parts import until

CONFIG = Path(__file__).parents[4] / "deploy/haproxy/haproxy.cfg"


def check_config(**environment: str) -> tuple[int, str]:
    """Return the exit status and the output of HAProxy's own check of the configuration."""
    command = [program("haproxy", "haproxy"), "-c", "-f", str(CONFIG)]
    check = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return check.returncode, check.stdout


class HAProxy:
    """HAProxy on a free port, in front of the port ``upstream``.

    ``environment`` are variables of the configuration.
    """

    def __init__(self, log: Path, upstream: int, **environment: str) -> None:
        self.log = log
        self.port, self.metrics_port = free_port(), free_port()
        scheme = "https" if "SKIPNET_CERTIFICATE" in environment else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        variables = {
            "SKIPNET_BACKEND": f"127.0.0.1:{upstream}",
            "SKIPNET_BIND": f"127.0.0.1:{self.port}",
            "SKIPNET_PROXY_METRICS": f"127.0.0.1:{self.metrics_port}",
        }
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [program("haproxy", "haproxy"), "-f", str(CONFIG)],
                env=os.environ | variables | environment,
                stdout=file,
                stderr=file,
            )
        until(self.listening)

    def listening(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with this name and these labels."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text
        samples = re.findall(rf"^haproxy_{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
        return sum(float(value) for found, value in samples if all(f'{k}="{v}"' in found for k, v in labels.items()))

    def drain(self) -> None:
        """Stop listening, and end when the last connection has ended."""
        self.process.send_signal(signal.SIGUSR1)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)
