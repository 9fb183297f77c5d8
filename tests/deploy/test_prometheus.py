"""What a real Prometheus makes of the service's metrics is what the service answered."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.parts import DEPLOY, RULES, Prometheus, program
from tests.service.parts import encoded, picture, until
from tests.service.test_server import Process

EXECUTED, DENSE = 'skipnet_macs_total{kind="executed"}', 'skipnet_macs_total{kind="dense"}'


@pytest.fixture
def scraped(repository: Path, tmp_path: Path) -> Iterator[tuple[httpx.Client, Prometheus]]:
    """`skipnet serve`, ready and scraped before its first request."""
    serve = Process(tmp_path / "log", "--model-repository", str(repository), "--engine", "torch", "--routing", "branch")
    with httpx.Client(base_url=serve.url(), timeout=20) as client:
        try:
            until(lambda: client.get("/health/ready").status_code == 200, 120)
            prometheus = Prometheus(tmp_path, {"skipnet": f"{client.base_url.host}:{client.base_url.port}"})
            try:
                until(lambda: prometheus.value(f"count_over_time({EXECUTED}[1m])") >= 2)
                yield client, prometheus
            finally:
                prometheus.stop()
        finally:
            serve.process.kill()
            serve.process.wait()


def test_saved_computation_is_that_of_the_answers(scraped: tuple[httpx.Client, Prometheus]) -> None:
    client, prometheus = scraped
    executed = dense = skipped = 0
    for seed in range(40):
        # From every block to none but the first: a mean of images that all cost the same would prove little.
        parameters = {"execute_threshold": seed % 5 / 4} if seed % 2 else {}
        answer = client.post(
            "/classify", params=parameters, content=encoded(picture(seed)), headers={"content-type": "image/png"}
        )
        routing = answer.raise_for_status().json()["routing"]
        executed, dense = executed + routing["macs"], dense + routing["dense_macs"]
        skipped += routing["skipped"]
    until(lambda: prometheus.value(EXECUTED) == executed)
    assert prometheus.value(DENSE) == dense
    assert prometheus.value("skipnet_blocks_skipped_sum") == skipped
    assert prometheus.value("sum(skipnet_block_skips_total)") == skipped

    saved = prometheus.value(f"1 - sum(rate({EXECUTED}[1m])) / sum(rate({DENSE}[1m]))")
    assert 0 < saved == pytest.approx(1 - executed / dense, rel=1e-9)
    # Prometheus extrapolates an increase to the window's end, by less than a scrape.
    assert prometheus.value(f"increase({EXECUTED}[1m])") == pytest.approx(executed, rel=0.1)
    assert prometheus.value(f"increase({DENSE}[1m])") == pytest.approx(dense, rel=0.1)


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
def test_names_and_types_follow_prometheus_conventions(scraped: tuple[httpx.Client, Prometheus], accept: str) -> None:
    client, _ = scraped
    client.post("/classify", content=encoded(picture(0)), headers={"content-type": "image/png"})
    text = client.get("/metrics", headers={"accept": accept}).text
    if accept == "text/plain":
        check = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
        assert check.returncode == 0, check.stderr
    else:
        assert text.endswith("# EOF\n")
        assert '# {request_id="' in text


def test_configuration_is_valid() -> None:
    for command in (
        ["check", "config", str(DEPLOY / "prometheus/prometheus.yml")],
        ["check", "rules", *map(str, RULES.glob("*.yml"))],
    ):
        check = subprocess.run([program("promtool"), *command], capture_output=True, text=True)
        assert check.returncode == 0, check.stdout + check.stderr
