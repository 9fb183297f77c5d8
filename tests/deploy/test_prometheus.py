"""Compare the metrics in a real Prometheus with the responses of the service."""

import subprocess

import pytest

from tests.deploy.parts import DEPLOY, Live
from tests.programs import program

EXECUTED, DENSE = 'skipnet_macs_total{kind="executed"}', 'skipnet_macs_total{kind="dense"}'


def test_saved_macs_are_those_of_the_responses(live: Live) -> None:
    assert live.then(f"sum({EXECUTED})") == live.executed
    assert live.then(f"sum({DENSE})") == live.dense
    assert live.then("sum(skipnet_blocks_skipped_sum)") == live.skipped
    assert live.then("sum(skipnet_block_skips_total)") == live.skipped
    assert live.then("sum(skipnet_layers_skipped_sum)") == live.layers

    saved = live.then(f"1 - sum(rate({EXECUTED}[5m])) / sum(rate({DENSE}[5m]))")
    assert 0 < saved == pytest.approx(1 - live.executed / live.dense, rel=1e-9)
    # Prometheus extrapolates an increase to the end of the window, by less than one scrape interval.
    assert live.then(f"sum(increase({EXECUTED}[5m]))") == pytest.approx(live.executed, rel=0.1)
    assert live.then(f"sum(increase({DENSE}[5m]))") == pytest.approx(live.dense, rel=0.1)


def test_names_and_types_follow_conventions(live: Live) -> None:
    text = live.client.get("/metrics", headers={"accept": "text/plain"}).text
    check = subprocess.run(
        [program("promtool", "prometheus"), "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr


def test_exemplars_carry_request_ids(live: Live) -> None:
    stored = live.prometheus.ask(
        "/query_exemplars",
        query="skipnet_request_duration_seconds_bucket",
        start=str(live.moment - 600),
        end=str(live.moment),
    )
    assert {label for series in stored for one in series["exemplars"] for label in one["labels"]} == {"request_id"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", DEPLOY / "prometheus/prometheus.yml"],
        ["test", "rules", *(DEPLOY / "prometheus/tests").glob("*.yml")],
    ],
    ids=["config", "rules"],
)
def test_promtool_accepts(arguments: list[object]) -> None:
    check = subprocess.run([program("promtool", "prometheus"), *map(str, arguments)], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
