"""Merge the metrics of several workers into one set."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
"""The format to request from a worker. It keeps exemplars."""

# Metrics of which the minimum or the maximum is taken. All others are added.
MINIMUM = ("skipnet_ready", "skipnet_usual_macs_share", "process_start_time_seconds")
MAXIMUM = (
    *(
        "skipnet_model_info",
        "skipnet_engine_mode",
        "skipnet_engine_busy_seconds",
        "skipnet_models_failed",
        "skipnet_expected_mac_share",
        "skipnet_expected_block_execution_rate",
        "skipnet_cascade_expected_escalation_rate",
    ),
    *("skipnet_gpu_utilization_ratio", "skipnet_gpu_memory_used_bytes", "skipnet_gpu_memory_bytes"),
    *("skipnet_gpu_energy_joules_total", "python_info"),
)


class MergedMetrics(Collector):
    """A collector of the metrics of all workers, each given as OpenMetrics text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        merged: dict[str, dict[tuple[object, ...], Sample]] = {}
        for text in self.texts:
            for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
                families.setdefault(family.name, family)
                samples = merged.setdefault(family.name, {})
                for sample in family.samples:
                    key = (sample.name, *sample.labels.items())
                    known = samples.get(key)
                    samples[key] = sample if known is None else combine(known, sample)
        for name, family in families.items():
            family.samples = list(merged[name].values())
            yield family


def combine(one: Sample, other: Sample) -> Sample:
    """Return one sample for those of two workers, with the newest exemplar."""
    value = operation_for(one.name)(one.value, other.value)
    newest = max(
        (each.exemplar for each in (one, other) if each.exemplar), key=lambda e: e.timestamp or 0, default=None
    )
    return one._replace(value=value, exemplar=newest)


def operation_for(name: str) -> Callable[[float, float], float]:
    """Return how the values of a metric are combined."""
    if name in MINIMUM:
        return min
    return max if name in MAXIMUM else lambda one, other: one + other
