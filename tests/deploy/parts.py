"""A real Prometheus that scrapes the processes of a test."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.programs import program
from tests.service.parts import picture, until

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/rules"
EVERY = "1s"
LOADER_BYTES = (2 * 2 + 1) * 128 * 3 * 224 * 224 * 4
"""Shared memory of the data loader: two workers with two batches each, and one in use, of 128 photos in float32."""


class Prometheus:
    """Prometheus with our rules that scrapes ``targets`` (job to host:port) once a second."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        config = {
            "global": {"scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY},
            "rule_files": [str(RULES / "*.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
            ],
        }
        file, self.log = folder / "prometheus.yml", folder / "prometheus.log"
        file.write_text(yaml.safe_dump(config))
        options = {
            "config.file": file,
            "storage.tsdb.path": folder / "data",
            "web.listen-address": "127.0.0.1:0",
            "query.lookback-delta": "5m",
            "enable-feature": "exemplar-storage",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program("prometheus", "prometheus"), *(f"--{name}={value}" for name, value in options.items())],
                stderr=log,
            )
        until(lambda: self.address() != "" or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        self.client = httpx.Client(base_url=f"http://{self.address()}/api/v1", timeout=20)
        # It listens before it is ready, and returns 503 until then.
        until(lambda: self.client.get(f"http://{self.address()}/-/ready").status_code == 200, 60)

    def address(self) -> str:
        """Return host:port from the log, or "" until Prometheus listens. Port 0 lets the system choose."""
        for line in self.log.read_text().splitlines():
            if "Listening on" in line and "address=" in line:
                return line.rpartition("address=")[2].strip()
        return ""

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(20)

    def ask(self, path: str, **parameters: str) -> Any:
        response = self.client.get(path, params=parameters).json()
        assert response["status"] == "success", (parameters, response)
        return response["data"]

    def query(self, expression: str, **parameters: str) -> list[dict[str, Any]]:
        """Return the current series of an expression, with labels in ``metric`` and text in ``value[1]``."""
        series = self.evaluate(expression, **parameters)
        if not series and not parameters and self.scrape_failed():
            # A scrape that fails on a busy machine ends the series until the next one.
            until(lambda: bool(self.evaluate(expression)) or not self.scrape_failed(), 60)
            series = self.evaluate(expression)
        return series

    def evaluate(self, expression: str, **parameters: str) -> list[dict[str, Any]]:
        data = self.ask("/query", query=expression, **parameters)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        series: list[dict[str, Any]] = data["result"]
        return series

    def scrape_failed(self) -> bool:
        """Return whether a scrape failed in the last seconds."""
        return any(each["value"][1] == "0" for each in self.evaluate("min_over_time(up[5s])"))

    def value(self, expression: str) -> float:
        """Return the current single value of an expression, or NaN if it has none."""
        series = self.query(expression)
        assert len(series) <= 1, series
        return float(series[0]["value"][1]) if series else float("nan")


@dataclass
class Live:
    """A running service, its Prometheus, and sums over its responses until ``moment``."""

    client: httpx.Client
    prometheus: Prometheus
    moment: float = 0.0
    proxy: str = ""
    executed: int = 0
    dense: int = 0
    skipped: int = 0
    layers: int = 0

    def then(self, expression: str) -> float:
        """Return the single value that an expression had at ``moment``."""
        [series] = self.prometheus.query(expression, time=str(self.moment))
        return float(series["value"][1])


def filled(expression: str) -> str:
    """Replace Grafana's variables in a panel's expression by values.

    The interval begins before the fixture's requests.
    """
    for name, value in {"__rate_interval": "15m", "price": "0.1"}.items():
        expression = expression.replace(f"${name}", value)
    return re.sub(r"=~\"\$(job|instance|model|version|architecture)\"", '=~".*"', expression)


def write_dataset(folder: Path, count: int) -> None:
    """Write pictures in the format of CIFAR-10 on the hub: ``train.parquet`` with columns img and label."""
    from datasets import Dataset, Features, Image, Value, disable_progress_bars

    disable_progress_bars()
    rows = {"img": [picture(seed, 32, 32) for seed in range(count)], "label": [seed % 10 for seed in range(count)]}
    folder.mkdir()
    Dataset.from_dict(rows, Features({"img": Image(), "label": Value("int64")})).to_parquet(folder / "train.parquet")
