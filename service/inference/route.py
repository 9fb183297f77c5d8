"""The values that determine an image's route: thresholds, and points of an accuracy-compute curve."""

from dataclasses import dataclass
from typing import Protocol

Threshold = float | tuple[float, ...]
"""The values that determine an image's route: an execute threshold, or a cascade's thresholds and margins."""


class RouteRequest(Protocol):
    """A request's values for its route. If all are None, the service chooses the route."""

    execute_threshold: float | None
    compute_budget: float | None
    min_margin: float | None


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold with its mean cost, a share of the dense MACs, and its top-1 accuracy, 0..1, on the curve."""

    threshold: Threshold
    mac_share: float
    accuracy: float


@dataclass(frozen=True)
class RouteChoice:
    """The threshold of a request, and its accuracy if it comes from the curve.

    ``accuracy_loss`` is the expected loss of accuracy of a route that was degraded under load, or None.
    """

    threshold: Threshold
    expected_accuracy: float | None = None
    accuracy_loss: float | None = None

    @property
    def degraded(self) -> bool:
        return self.accuracy_loss is not None
