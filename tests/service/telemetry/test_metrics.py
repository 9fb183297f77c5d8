import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from models.checkpoint import Evaluation
from service.inference.dense_clock import DenseClock
from service.repository.loaded_model import LoadedModel
from service.telemetry.metrics import BLOCKS, LAYERS, SECONDS, Metrics
from tests.service.parts import NAME, PNG, Running, encoded, engine_of, picture, until

OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
MINE = {"model": NAME, "version": "1"}


def classify(server: Running, seed: int, query: str = "", **headers: str) -> dict[str, object]:
    response = server.client.post(f"/classify{query}", content=encoded(picture(seed)), headers=PNG | headers)
    assert response.status_code == 200
    body: dict[str, object] = response.json()
    return body


def test_metrics_equal_the_sum_of_the_responses(start: Callable[..., Running]) -> None:
    server = start()
    responses = [classify(server, i, "?explain=true" + q) for i, q in enumerate(["", "", "&execute_threshold=1"])]
    routings = [body["routing"] for body in responses]
    until(lambda: server.metric("batch_size_sum", **MINE) == 3)

    def total(key: str) -> int:
        return sum(routing[key] for routing in routings)  # type: ignore[index]

    assert server.metric("requests_total", outcome="ok", **MINE) == 3
    assert server.metric("macs_total", kind="executed", **MINE) == total("macs")
    assert server.metric("macs_total", kind="dense", **MINE) == total("dense_macs")
    assert server.metric("blocks_skipped_sum", **MINE) == total("skipped")
    assert server.metric("blocks_skipped_count", **MINE) == 3
    assert server.metric("layers_skipped_sum", **MINE) == total("layers_skipped")
    assert server.metric("block_executions_total", block="0", **MINE) == 3
    for decision in range(17):
        executed = sum(routing["decisions"][decision]["executed"] for routing in routings)  # type: ignore[index]
        block = str(decision + 1)
        assert server.metric("block_executions_total", block=block, **MINE) == executed
        assert server.metric("block_skips_total", block=block, **MINE) == 3 - executed
    timings = [body["timing_ms"] for body in responses]
    for stage in ("decode", "queue", "inference"):
        seconds = sum(timing[stage] for timing in timings) / 1e3  # type: ignore[index]
        assert server.metric("stage_duration_seconds_sum", stage=stage, **MINE) == pytest.approx(seconds, abs=1e-4)
    total_seconds = sum(timing["total"] for timing in timings) / 1e3  # type: ignore[index]
    assert server.metric("request_duration_seconds_sum", **MINE) == pytest.approx(total_seconds, abs=1e-4)
    assert server.metric("request_duration_seconds_count", **MINE) == 3


def test_effective_batch_of_a_block_can_be_derived(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start()
    engine_of(model).open.clear()
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(classify, server, 0, "?execute_threshold=0")
        until(lambda: server.container.pipeline.batcher.busy_for > 0)
        rest = [pool.submit(classify, server, i, f"?execute_threshold={i % 2}") for i in range(4)]
        until(lambda: server.metric("queue_depth", **MINE) == 4)
        assert server.metric("images_in_flight") == 5
        assert 0 < server.metric("engine_busy_seconds") <= server.container.pipeline.batcher.busy_for
        engine_of(model).open.set()
        for each in [first, *rest]:
            each.result()
    until(lambda: server.metric("batches_total", mode="branch", **MINE) == 2)
    assert server.metric("batch_size_bucket", le="1.0", **MINE) == 1
    assert server.metric("block_executions_total", block="5", **MINE) == 3
    assert server.metric("queue_depth", **MINE) == 0
    assert server.metric("images_in_flight") == 0
    until(lambda: server.metric("engine_busy_seconds") == 0)


def test_engine_seconds_and_dense_seconds(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start()
    classify(server, 0, "?execute_threshold=1")
    until(lambda: server.metric("engine_seconds_total", **MINE) > 0)
    seconds = server.metric("engine_seconds_total", **MINE)
    assert server.metric("dense_seconds_total", **MINE) == pytest.approx(model.clock.instead(1, seconds))


def test_the_dense_run_of_a_sample_is_counted(start: Callable[..., Running], model: LoadedModel) -> None:
    clock = model.clock = DenseClock([1, 8], [1e-6, 1e-6])
    server = start(dense_sample_interval=1e-9)
    engine = engine_of(model)
    spent = sum(classify(server, seed)["routing"]["macs"] for seed in range(3))  # type: ignore[index]
    # Before the first batch the engine has not run, so a sample would be too large a share of its time.
    assert [batch[0] == 0 for batch in engine.batches] == [False, True, False, True, False]
    full = model.checkpoint.macs.full
    until(lambda: server.metric("macs_total", kind="executed", **MINE) == spent + 2 * full)
    assert server.metric("dense_sampled_images_total", **MINE) == 2
    assert clock.seconds(1) > 1e-6


def test_the_model_info_names_engine_and_device(running: Running) -> None:
    assert running.metric("model_info", architecture=NAME, engine="torch", device="cpu", **MINE) == 1
    assert running.metric("engine_mode", mode="branch", **MINE) == 1
    assert running.metric("engine_mode", mode="mask", **MINE) == 0


def test_expected_values_of_the_checkpoint(loaded: LoadedModel) -> None:
    evaluation = Evaluation(
        dataset="cifar10", split="test", images=10, engine="torch", execute_threshold=0.5, accuracy=0.9,
        computation_percentage=50, macs=25.0, dense_macs=100, decisions_skipped=0.5, execution_rate=[0.5] * 17,
        accuracy_per_class={},
    )  # fmt: skip
    config = loaded.checkpoint.config.model_copy(update={"evaluation": evaluation})
    metrics = Metrics()
    model = replace(loaded, checkpoint=replace(loaded.checkpoint, config=config))
    metrics.add_model(model, lambda: 0)
    value = metrics.registry.get_sample_value
    assert value("skipnet_expected_mac_share", MINE) == 0.25
    assert value("skipnet_expected_block_execution_rate", MINE | {"block": "17"}) == 0.5
    metrics.remove_model(model)
    assert value("skipnet_expected_mac_share", MINE) is None
    assert value("skipnet_queue_depth", MINE) is None
    assert value("skipnet_macs_total", MINE | {"kind": "dense"}) == 0


def test_the_series_of_old_versions_are_removed(loaded: LoadedModel) -> None:
    metrics = Metrics()

    def version(number: int) -> LoadedModel:
        return replace(loaded, checkpoint=replace(loaded.checkpoint, folder=Path(NAME) / str(number)))

    def known() -> set[str]:
        labels = (sample.labels for family in metrics.registry.collect() for sample in family.samples)
        return {each["version"] for each in labels if each.get("model")}

    versions = {number: version(number) for number in range(1, 6)}
    for number, each in versions.items():
        metrics.add_model(each, lambda: 0)
        if number > 1:
            metrics.remove_model(versions[number - 1])
    assert known() == {"3", "4", "5"}
    metrics.add_model(versions[3], lambda: 0)
    metrics.remove_model(versions[5])
    assert known() == {"3", "4", "5"}


def test_plain_text_and_openmetrics_by_the_accept_header(running: Running) -> None:
    classify(running, 0, **{"x-request-id": "exemplary"})
    plain = running.client.get("/metrics", headers={"accept": "text/plain"})
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert "# {" not in plain.text
    families = {family.name for family in parse(plain.text)}
    rich = running.client.get("/metrics", headers=OPENMETRICS)
    assert rich.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    exemplars = [
        sample.exemplar.labels
        for family in parse_openmetrics(rich.text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar
    ]
    assert {"request_id": "exemplary"} in exemplars
    assert {"skipnet_requests", "skipnet_stage_duration_seconds", "process_cpu_seconds"} <= families


def test_clients_cannot_create_series(running: Running) -> None:
    def series() -> set[str]:
        return set(re.findall(r"^(skipnet_\w+{[^}]*})", running.client.get("/metrics").text, re.MULTILINE))

    for query in ("?model=evil", "?model=other&version=3", "?top_k=0"):
        running.client.post(f"/classify{query}", content=b"x", headers=PNG)
    before = series()
    for i in range(20):
        running.client.post(f"/classify?model=evil{i}", content=b"x", headers=PNG | {"x-request-id": f"id{i}"})
        running.client.get(f"/nowhere{i}")
    assert series() == before
    assert not any("evil" in line for line in before)


@pytest.mark.parametrize("buckets", [SECONDS, BLOCKS, LAYERS])
def test_buckets_ascend(buckets: tuple[float, ...]) -> None:
    assert list(buckets) == sorted(set(buckets))


def test_buckets_cover_the_measured_values() -> None:
    assert (SECONDS[0], SECONDS[-1]) == (0.00025, 10)
    assert set(range(18)) < set(BLOCKS)
    assert {2 * blocks for blocks in range(18)} < set(LAYERS)
    assert {3 * blocks for blocks in range(13)} < set(LAYERS)
