"""The metrics of shadows: how often the labels agree. A model without a shadow has none of these series."""

from typing import TYPE_CHECKING

from prometheus_client import Counter

from service.telemetry.cascade_metrics import MakeMetric

if TYPE_CHECKING:
    from service.repository.loaded_model import LoadedModel

OUTCOMES = ("agreed", "differed", "dropped", "failed")
"""The outcomes of a sampled image. Dropped: the engine was busy, or the versions take different inputs."""


class ShadowMetrics:
    """Counts sampled images by outcome. The label ``shadow`` is a version, or "dense"."""

    def __init__(self, counter: "MakeMetric[Counter]") -> None:
        self.images = counter(
            "shadow_images_total",
            "Sampled images by whether the labels of the shadow and the response agree. Dropped: the engine was busy.",
            ("model", "version", "shadow", "outcome"),
        )
        self.seconds = counter(
            "shadow_engine_seconds_total",
            "Seconds that the engine ran for shadows. They are not part of skipnet_engine_seconds_total.",
            ("model", "version", "shadow"),
        )

    def add_model(self, model: "LoadedModel", shadow: str) -> None:
        """Begin a version's series at 0."""
        for outcome in OUTCOMES:
            self.count(model, shadow, outcome, images=0)

    def count(self, model: "LoadedModel", shadow: str, outcome: str, seconds: float = 0.0, images: int = 1) -> None:
        """Count a sampled image with one of OUTCOMES, and the seconds that it took."""
        self.images.labels(model.name, str(model.version), shadow, outcome).inc(images)
        self.seconds.labels(model.name, str(model.version), shadow).inc(seconds)
