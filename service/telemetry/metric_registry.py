"""Register the metrics of a server, and remove the series of a version from all of them."""

from collections.abc import Iterable
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from service.telemetry.gpu import GpuCollector

VERSION = ("model", "version")
"""The labels of a metric of one version."""

Metric = TypeVar("Metric", Counter, Gauge, Histogram)

# They would double the series of a counter. process_start_time_seconds has the same information.
disable_created_metrics()  # type: ignore[no-untyped-call]


class MetricRegistry:
    """Makes metrics whose names begin with skipnet_, beside those of the process and the GPUs."""

    def __init__(self) -> None:
        self.collectors = CollectorRegistry()
        ProcessCollector(registry=self.collectors)
        PlatformCollector(registry=self.collectors)
        GCCollector(registry=self.collectors)
        self.collectors.register(GpuCollector())
        self._of_versions: list[Counter | Gauge | Histogram] = []

    def counter(self, name: str, text: str, labels: tuple[str, ...] = VERSION) -> Counter:
        """Return a new counter."""
        return self._note(Counter(f"skipnet_{name}", text, labels, registry=self.collectors), labels)

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = VERSION) -> Gauge:
        """Return a new gauge."""
        return self._note(Gauge(f"skipnet_{name}", text, labels, registry=self.collectors), labels)

    def histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = VERSION
    ) -> Histogram:
        """Return a new histogram."""
        made = Histogram(f"skipnet_{name}", text, labels, buckets=buckets, registry=self.collectors)
        return self._note(made, labels)

    def info(self, name: str, text: str) -> Info:
        """Return a new info of a version."""
        return Info(f"skipnet_{name}", text, VERSION, registry=self.collectors)

    def remove_version(self, version: tuple[str, str]) -> None:
        """Remove the series of a model's version from every metric with the labels VERSION."""
        remove_version(self._of_versions, version)

    def _note(self, metric: Metric, labels: tuple[str, ...]) -> Metric:
        if set(VERSION) <= set(labels):
            self._of_versions.append(metric)
        return metric


def remove_version(metrics: Iterable[Counter | Gauge | Histogram | Info], version: tuple[str, str]) -> None:
    """Remove the series of a model's version from some metrics."""
    for metric in metrics:
        metric.remove_by_labels(dict(zip(VERSION, version, strict=True)))
