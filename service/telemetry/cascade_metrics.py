"""The metrics of confidence cascades by stage. A model of one network has none of these series."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from service.inference.result import ImageResult

if TYPE_CHECKING:
    from service.repository.loaded_cascade import LoadedCascade

Made = TypeVar("Made", Counter, Gauge, Histogram, covariant=True)
STAGE = ("model", "version", "stage")
MARGINS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)


class MakeMetric(Protocol[Made]):
    """Register a metric with the labels of a model and a version."""

    def __call__(self, name: str, text: str, labels: tuple[str, ...], /) -> Made: ...


class CascadeMetrics:
    """Images, MACs and margins of each stage, and the durations of escalated and other requests."""

    def __init__(
        self,
        counter: "MakeMetric[Counter]",
        gauge: "MakeMetric[Gauge]",
        margins: "MakeMetric[Histogram]",
        durations: "MakeMetric[Histogram]",
    ) -> None:
        """``margins`` and ``durations`` make histograms with buckets in 0..1 and in seconds."""
        self.images = counter("cascade_images_total", "Images that reached a stage of a cascade.", STAGE)
        self.macs = counter("cascade_macs_total", "MACs that a stage of a cascade executed.", STAGE)
        self.margin = margins("cascade_margin", "Confidence of a stage in its output for an image.", STAGE)
        self.duration = durations(
            "cascade_request_duration_seconds",
            "Time from arrival to response of successful requests, by whether an image was escalated.",
            ("model", "version", "escalated"),
        )
        self.expected = gauge(
            "cascade_expected_escalation_rate",
            "Share of the evaluated images that reached a later stage.",
            STAGE,
        )

    def add_model(self, model: "LoadedCascade") -> None:
        """Start the series of a cascade at zero."""
        labels = (model.name, str(model.version))
        for stage in range(len(model.checkpoint.stages)):
            self.images.labels(*labels, str(stage))
            self.macs.labels(*labels, str(stage))
        for stage, rate in enumerate(model.escalation_rates, start=1):
            self.expected.labels(*labels, str(stage)).set(rate)

    def count_batch(self, model: "LoadedCascade", results: Sequence[ImageResult]) -> None:
        """Count the images, MACs and margins of each stage for a batch."""
        labels = (model.name, str(model.version))
        for stage in range(max(len(result.stages) for result in results)):
            reached = [result.stages[stage] for result in results if len(result.stages) > stage]
            self.images.labels(*labels, str(stage)).inc(len(reached))
            self.macs.labels(*labels, str(stage)).inc(sum(outcome.macs for outcome in reached))
            margin = self.margin.labels(*labels, str(stage))
            for outcome in reached:
                margin.observe(outcome.margin)

    def observe_request(self, model: "LoadedCascade", seconds: float, results: Sequence[ImageResult]) -> None:
        """Observe the duration of a request."""
        escalated = any(len(result.stages) > 1 for result in results)
        self.duration.labels(model.name, str(model.version), str(escalated).lower()).observe(seconds)
