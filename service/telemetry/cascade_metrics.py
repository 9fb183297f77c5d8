"""The metrics of confidence cascades, stage by stage; a model of one network has none of these series."""

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
    """Register a metric that has a model's and a version's labels."""

    def __call__(self, name: str, text: str, labels: tuple[str, ...], /) -> Made: ...


class CascadeMetrics:
    """Images, MACs and margins of each stage, and how long escalated and other requests take."""

    def __init__(
        self,
        counter: "MakeMetric[Counter]",
        gauge: "MakeMetric[Gauge]",
        margins: "MakeMetric[Histogram]",
        durations: "MakeMetric[Histogram]",
    ) -> None:
        """``margins`` and ``durations`` make histograms with buckets of 0..1 and of seconds."""
        self.images = counter("cascade_images_total", "Images that reached a stage of a cascade.", STAGE)
        self.macs = counter("cascade_macs_total", "MACs that a stage of a cascade executed.", STAGE)
        self.margin = margins("cascade_margin", "Confidence of a stage in its output for an image.", STAGE)
        self.duration = durations(
            "cascade_request_duration_seconds",
            "From arrival to response, of requests that were classified, by whether an image went on to a later stage.",
            ("model", "version", "escalated"),
        )
        self.expected = gauge(
            "cascade_expected_escalation_rate",
            "Share of the evaluated images that reached a later stage.",
            STAGE,
        )

    def add_model(self, model: "LoadedCascade") -> None:
        """Begin the series of a cascade at zero."""
        labels = (model.name, str(model.version))
        for stage in range(len(model.checkpoint.stages)):
            self.images.labels(*labels, str(stage))
            self.macs.labels(*labels, str(stage))
        for stage, rate in enumerate(model.escalation_rates, start=1):
            self.expected.labels(*labels, str(stage)).set(rate)

    def count_batch(self, model: "LoadedCascade", results: Sequence[ImageResult]) -> None:
        """Count what each stage did for the images of a batch."""
        labels = (model.name, str(model.version))
        for stage in range(max(len(result.stages) for result in results)):
            reached = [result.stages[stage] for result in results if len(result.stages) > stage]
            self.images.labels(*labels, str(stage)).inc(len(reached))
            self.macs.labels(*labels, str(stage)).inc(sum(outcome.macs for outcome in reached))
            margin = self.margin.labels(*labels, str(stage))
            for outcome in reached:
                margin.observe(outcome.margin)

    def observe_request(self, model: "LoadedCascade", seconds: float, results: Sequence[ImageResult]) -> None:
        """Observe how long a request took."""
        escalated = any(len(result.stages) > 1 for result in results)
        self.duration.labels(model.name, str(model.version), str(escalated).lower()).observe(seconds)
