from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.telemetry.metrics import Metrics
from service.workers.merging import MAXIMUM, MINIMUM, MergedMetrics


def text(requests: int, ready: int, at: float) -> str:
    return f"""# HELP skipnet_ready ready
# TYPE skipnet_ready gauge
skipnet_ready {ready}
# HELP skipnet_queue_depth waiting
# TYPE skipnet_queue_depth gauge
skipnet_queue_depth{{model="m"}} 2
# HELP skipnet_model model
# TYPE skipnet_model info
skipnet_model_info{{model="m"}} 1
# HELP skipnet_seconds seconds
# TYPE skipnet_seconds histogram
skipnet_seconds_bucket{{le="1.0"}} {requests} # {{request_id="r{requests}"}} 0.5 {at}
skipnet_seconds_bucket{{le="+Inf"}} {requests}
skipnet_seconds_count {requests}
skipnet_seconds_sum {requests / 2}
# EOF
"""


def merged(*texts: str) -> dict[str, float]:
    families: list[Metric] = list(MergedMetrics(texts).collect())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_sums_minimum_and_maximum() -> None:
    values = merged(text(3, 1, 10), text(4, 0, 20))
    assert values["skipnet_seconds_count"] == 7
    assert values["skipnet_seconds_sum"] == 3.5
    assert values["skipnet_queue_depth"] == 4
    assert values["skipnet_ready"] == 0
    assert values["skipnet_model_info"] == 1


def test_series_of_a_single_worker_are_kept() -> None:
    other = text(1, 1, 10).replace('model="m"', 'model="n"')
    families = {family.name: family for family in MergedMetrics([text(1, 1, 10), other]).collect()}
    assert [sample.labels["model"] for sample in families["skipnet_queue_depth"].samples] == ["m", "n"]


def test_newest_exemplar_is_kept() -> None:
    for texts in ([text(3, 1, 10), text(4, 1, 20)], [text(4, 1, 20), text(3, 1, 10)]):
        assert b'{request_id="r4"} 0.5 20' in openmetrics(MergedMetrics(texts))  # type: ignore[no-untyped-call]


def test_the_metrics_of_one_worker_do_not_change() -> None:
    alone = openmetrics(Metrics().registry).decode()  # type: ignore[no-untyped-call]
    families = list(text_string_to_metric_families(alone))  # type: ignore[no-untyped-call]
    assert list(MergedMetrics([alone]).collect()) == families


def test_every_gauge_is_known_to_the_merging() -> None:
    """The values of an unknown gauge would be added, which may be wrong."""
    added = {
        *("skipnet_images_in_flight", "skipnet_queue_depth", "process_virtual_memory_bytes"),
        *("process_resident_memory_bytes", "process_open_fds", "process_max_fds", "skipnet_engine_threads"),
    }
    gauges = {
        f"{family.name}_info" if family.type == "info" else family.name
        for family in Metrics().registry.collect()
        if family.type in ("gauge", "info")
    }
    assert gauges <= added | {*MINIMUM, *MAXIMUM}
