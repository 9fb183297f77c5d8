"""Admission: limits on the images in progress and on the bytes held, and the Retry-After of a refusal."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from service.errors import Code, ServiceError

if TYPE_CHECKING:
    from service.repository.loaded_model import LoadedModel

REJECT_REASONS = ("queue_full", "bodies_full", "deadline_out_of_reach", "client_deadline")
"""The reasons of a 429. With client_deadline, the service's own timeout would have been long enough."""


class Admission:
    """Counts images from the end of their request's body to their result. Counts the bytes of all bodies.

    ``request_timeout`` is the service's own, in seconds. ``rate`` returns the images per second that the engine
    recently ran. ``on_rejected`` is called with one of REJECT_REASONS. Use it in the event loop.
    """

    def __init__(
        self,
        max_images: int,
        max_bytes: int,
        request_timeout: float,
        rate: Callable[[], float],
        on_rejected: Callable[[str], None],
    ) -> None:
        self.max_images = max_images
        self.max_bytes = max_bytes
        self.request_timeout = request_timeout
        self.image_count = 0
        self.byte_count = 0
        self._rate = rate
        self._on_rejected = on_rejected

    @contextmanager
    def admit(self, count: int, model: "LoadedModel", deadline: float, started: float) -> Iterator[None]:
        """Count ``count`` images of a request as in progress until the `with` block ends.

        Call it when the body has arrived: a client that sends no body must not take a place. ``started`` is the
        request's arrival; it and ``deadline`` are in seconds of perf_counter().

        Raises ServiceError overloaded if there are too many images, or if those in progress would keep the engine busy
        past the deadline. The estimate assumes that every block runs, as for the most expensive image.
        """
        if self.image_count + count > self.max_images:
            raise self._queue_full(model)
        if self.image_count and (ready := perf_counter() + self.drain_seconds(model)) > deadline:
            reason = "deadline_out_of_reach" if ready > started + self.request_timeout else "client_deadline"
            raise self._overloaded(
                reason, f"the deadline would pass while {self.image_count} earlier images are processed", model
            )
        self.image_count += count
        try:
            yield
        finally:
            self.image_count -= count

    def refuse_if_saturated(self, model: "LoadedModel") -> None:
        """Raise ServiceError overloaded if no image can be admitted now, before the client sends its body."""
        if self.saturated:
            raise self._queue_full(model)

    @property
    def saturated(self) -> bool:
        """Return whether no further image can be admitted."""
        return self.image_count >= self.max_images

    def _queue_full(self, model: "LoadedModel") -> ServiceError:
        """Return the error for a request without a place."""
        return self._overloaded("queue_full", f"{self.image_count} images are in progress", model)

    def drain_seconds(self, model: "LoadedModel") -> float:
        """Return the seconds that the engine takes for all admitted images if every block runs."""
        largest = model.clock.sizes[-1]
        return self.image_count * model.clock.seconds(largest) / largest

    def _overloaded(self, reason: str, problem: str, model: "LoadedModel | None" = None) -> ServiceError:
        """Return a 429; Retry-After is the time to drain half of the images in progress."""
        self._on_rejected(reason)
        rate = self._rate()
        seconds = self.image_count / 2 / rate if rate else self.drain_seconds(model) / 2 if model is not None else 1
        after = max(1, math.ceil(seconds))
        # A short deadline of the client is not an overload of the service.
        outcome = "client_deadline" if reason == "client_deadline" else None
        return ServiceError(Code.OVERLOADED, f"{problem}; try again in {after} s", {"Retry-After": str(after)}, outcome)

    @contextmanager
    def hold_body(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that counts the bytes of one body as they arrive.

        They are released when the `with` block ends.

        The function raises ServiceError overloaded if all bodies together have too many bytes.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self.byte_count + size > self.max_bytes:
                raise self._overloaded("bodies_full", f"{self.byte_count} bytes of uploads are in memory")
            self.byte_count += size
            held += size

        try:
            yield hold
        finally:
            self.byte_count -= held
