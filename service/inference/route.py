"""What decides an image's route: thresholds, and the points of an accuracy-compute curve."""

from dataclasses import dataclass
from typing import Protocol

Threshold = float | tuple[float, ...]
"""What decides an image's route: an execute threshold, or the thresholds and margins of a cascade."""


class RouteRequest(Protocol):
    """What a request says of its route. With None everywhere, it leaves the route to the service."""

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
    """The threshold of a request, and its accuracy on the curve if it was looked up there.

    ``accuracy_loss`` is the expected accuracy that a route gives up which was degraded under load; None otherwise.
    """

    threshold: Threshold
    expected_accuracy: float | None = None
    accuracy_loss: float | None = None

    @property
    def degraded(self) -> bool:
        return self.accuracy_loss is not None
