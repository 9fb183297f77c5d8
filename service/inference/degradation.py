"""Cheaper routes under load: the level of degradation, and the point of the accuracy-compute curve."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from service.inference.route import OperatingPoint, RouteChoice, RouteRequest

if TYPE_CHECKING:
    from service.repository.loaded_model import LoadedModel

LEVELS = 4
"""Steps from the usual MACs to the fewest that the operator allows."""
HIGH, LOW = 0.25, 0.05
"""Waiting images as a share of the largest batch. Above HIGH the level rises, below LOW it falls."""
SMOOTHING_SECONDS = 0.25
"""Time constant of the mean that is compared with HIGH and LOW. One burst does not change the level."""
RAISE_SECONDS, LOWER_SECONDS = 0.1, 2.0
"""The least time between two steps. Slow steps down prevent routes from switching back and forth."""


class Pressure:
    """The level of degradation, 0 to LEVELS, by the images that wait for the engine.

    Images that wait for decoding do not count: cheaper routes would not help them.
    """

    def __init__(self, max_batch_size: int) -> None:
        self.level = 0
        self._size = max_batch_size
        self._mean = 0.0
        self._seen = self._pressed = self._changed = -math.inf  # last update, last mean above LOW, last step

    def update(self, waiting: int, now: float) -> int:
        """Return the level when ``waiting`` images wait at ``now``, in seconds of a steady clock."""
        weight = -math.expm1((self._seen - now) / SMOOTHING_SECONDS)
        self._mean += weight * (waiting / self._size - self._mean)
        self._seen = now
        if self._mean >= LOW:
            self._pressed = now
        calm = now - max(self._pressed, self._changed)
        if self._mean > HIGH and now - self._changed >= RAISE_SECONDS and self.level < LEVELS:
            self.level, self._changed = self.level + 1, now
        elif self.level and calm >= LOWER_SECONDS:
            # After a pause without requests, several steps are taken at once.
            self.level, self._changed = max(0, self.level - int(calm / LOWER_SECONDS)), now
        return self.level


def cheaper_point(
    points: Sequence[OperatingPoint], usual: OperatingPoint, share: float, max_loss: float
) -> OperatingPoint | None:
    """Return the most accurate point that takes at most ``share`` of the usual MACs, or None if none is cheaper.

    Points that are expected to lose more than ``max_loss`` of the usual accuracy are left out. If no remaining point is
    cheap enough, the cheapest one is returned.
    """
    allowed = [
        point for point in points if point.mac_share < usual.mac_share and point.accuracy >= usual.accuracy - max_loss
    ]
    within = [point for point in allowed if point.mac_share <= share * usual.mac_share]
    if within:
        return max(within, key=lambda point: (point.accuracy, -point.mac_share))
    return min(allowed, key=lambda point: point.mac_share, default=None)


@dataclass(frozen=True)
class Limits:
    """The operator's limits of degradation: least share of the usual MACs, and largest loss of expected accuracy."""

    share: float
    loss: float


class Degradation:
    """Chooses the route of requests that set none. Without ``limits`` it is always the usual one.

    ``waiting`` returns how many images wait for the engine. Use it in the event loop.
    """

    def __init__(self, limits: Limits | None, max_batch_size: int, waiting: Callable[[], int]) -> None:
        self.limits = limits
        self._waiting = waiting
        self._pressure = Pressure(max_batch_size)
        self._routes: WeakKeyDictionary[LoadedModel, dict[float, RouteChoice]] = WeakKeyDictionary()

    @property
    def share(self) -> float:
        """The current share of the usual MACs of an image. It is 1 without degradation."""
        if self.limits is None:
            return 1.0
        return 1 - (1 - self.limits.share) * self._pressure.update(self._waiting(), perf_counter()) / LEVELS

    def route(self, model: "LoadedModel", request: RouteRequest, allowed: bool) -> RouteChoice:
        """Return the route of a request: under load a cheaper one, if that is ``allowed`` and the request sets none."""
        requested = (request.execute_threshold, request.compute_budget, request.min_margin)
        usual = model.choose_route(*requested)
        return self.choose(model, usual) if allowed and requested == (None, None, None) else usual

    def choose(self, model: "LoadedModel", usual: RouteChoice) -> RouteChoice:
        """Return ``usual``, the route of a request that sets none, or a cheaper one under load."""
        if self.limits is None or (share := self.share) == 1:
            return usual
        routes = self._routes.setdefault(model, {})
        if share not in routes:
            routes[share] = degraded(model, usual, share, self.limits.loss)
        return routes[share]


def degraded(model: "LoadedModel", usual: RouteChoice, share: float, max_loss: float) -> RouteChoice:
    """Return the route of a model at ``share`` of its usual MACs, or ``usual`` if its curve has no cheaper point."""
    point = model.usual_point
    cheaper = None if point is None else cheaper_point(model.operating_points, point, share, max_loss)
    if point is None or cheaper is None:
        return usual
    return RouteChoice(cheaper.threshold, cheaper.accuracy, max(0.0, point.accuracy - cheaper.accuracy))
