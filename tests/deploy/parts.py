"""A real Prometheus that scrapes what a test starts."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.service.parts import picture, until

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/rules"
EVERY = "250ms"


def program(name: str) -> str:
    """Return the path of a program of Debian's package prometheus; skips the test where there is none, fails in CI."""
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed; it is in Debian's package prometheus"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


class Prometheus:
    """Prometheus with our rules, scraping ``targets`` (job to host:port) four times a second."""

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
                [program("prometheus"), *(f"--{name}={value}" for name, value in options.items())], stderr=log
            )
        until(lambda: self.address() != "" or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        self.client = httpx.Client(base_url=f"http://{self.address()}/api/v1", timeout=20)
        # It listens before it can answer, and says 503 in between.
        until(lambda: self.client.get(f"http://{self.address()}/-/ready").status_code == 200, 60)

    def address(self) -> str:
        """Return host:port once it listens; port 0 lets the system choose, and the log says what it chose."""
        for line in self.log.read_text().splitlines():
            if "Listening on" in line and "address=" in line:
                return line.rpartition("address=")[2].strip()
        return ""

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(20)

    def ask(self, path: str, **parameters: str) -> Any:
        answer = self.client.get(path, params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str, **parameters: str) -> list[dict[str, Any]]:
        """Return the series that an expression gives now: labels in ``metric``, text in ``value[1]``."""
        data = self.ask("/query", query=expression, **parameters)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        series: list[dict[str, Any]] = data["result"]
        return series

    def value(self, expression: str) -> float:
        """Return the one value that an expression gives now; NaN where it gives none."""
        series = self.query(expression)
        assert len(series) <= 1, series
        return float(series[0]["value"][1]) if series else float("nan")


@dataclass
class Live:
    """A running service, the Prometheus that scrapes it, and the sums of what it answered until ``moment``."""

    client: httpx.Client
    prometheus: Prometheus
    moment: float = 0.0
    executed: int = 0
    dense: int = 0
    skipped: int = 0
    layers: int = 0

    def then(self, expression: str) -> float:
        """Return the one value that an expression had when Prometheus had seen exactly those answers."""
        [series] = self.prometheus.query(expression, time=str(self.moment))
        return float(series["value"][1])


def filled(expression: str) -> str:
    """Return a panel's expression with values for Grafana's variables."""
    for name, value in {"__rate_interval": "1m", "price": "0.1"}.items():
        expression = expression.replace(f"${name}", value)
    return re.sub(r"=~\"\$(job|instance|model|version|architecture)\"", '=~".*"', expression)


def write_dataset(folder: Path, images: int) -> None:
    """Write a few pictures as CIFAR-10 lies on the hub: ``train.parquet`` with columns img and label."""
    from datasets import Dataset, Features, Image, Value, disable_progress_bars

    disable_progress_bars()
    rows = {"img": [picture(seed, 32, 32) for seed in range(images)], "label": [seed % 10 for seed in range(images)]}
    folder.mkdir()
    Dataset.from_dict(rows, Features({"img": Image(), "label": Value("int64")})).to_parquet(folder / "train.parquet")
