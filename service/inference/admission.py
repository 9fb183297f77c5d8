"""Who is let in: bounds on images that are admitted and on bytes held, and when to come again."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from service.errors import Code, ServiceError

if TYPE_CHECKING:
    from service.repository.loaded_model import LoadedModel

REASONS = ("queue_full", "bodies_full", "deadline_out_of_reach", "client_deadline")
"""Why a request is refused; the last where the service's own timeout would have been in reach."""


class Admission:
    """Counts images from when their request's body is there to its answer, and bytes of bodies; refuses too many.

    ``rate`` gives the images per second that the engine lately got through, ``patience`` is the seconds that a request
    has where its client does not ask for less. Lives in the event loop.
    """

    def __init__(
        self,
        max_images: int,
        max_bytes: int,
        patience: float,
        rate: Callable[[], float],
        on_rejected: Callable[[str], None],
    ) -> None:
        self.max_images = max_images
        self.max_bytes = max_bytes
        self.patience = patience
        self.images = 0
        self.bytes = 0
        self._rate = rate
        self._on_rejected = on_rejected

    def check(self, images: int, model: "LoadedModel", deadline: float, started: float) -> None:
        """Raise ServiceError overloaded with `Retry-After` where a request that ``started`` then can't be admitted.

        There are too many before them, or those would take the engine past ``deadline`` even if it took these
        last. What is not measured yet is assumed to run every block, as a hostile image would.
        """
        if self.images + images > self.max_images:
            raise self.queue_full(model)
        if self.images and (done := perf_counter() + self.wait(model)) > deadline:
            reason = "deadline_out_of_reach" if done > started + self.patience else "client_deadline"
            raise self.overloaded(reason, f"the deadline would pass behind the {self.images} images before", model)

    @contextmanager
    def admit(self, images: int, model: "LoadedModel", deadline: float, started: float) -> Iterator[None]:
        """Count a request's images in until it is answered; raises as `check` does.

        For when its body is there: who sends none would take places for nothing.
        """
        self.check(images, model, deadline, started)
        self.images += images
        try:
            yield
        finally:
            self.images -= images

    @property
    def full(self) -> bool:
        return self.images >= self.max_images

    def queue_full(self, model: "LoadedModel | None" = None) -> ServiceError:
        return self.overloaded("queue_full", f"{self.images} images are being worked on", model)

    def wait(self, model: "LoadedModel") -> float:
        """Return the seconds until the engine has got through every image that is admitted, all of them dense."""
        largest = model.clock.sizes[-1]
        return self.images * model.clock.seconds(largest) / largest

    def overloaded(self, reason: str, what: str, model: "LoadedModel | None" = None) -> ServiceError:
        """Return the refusal, telling when half of the house will be empty at the rate measured."""
        self._on_rejected(reason)
        rate = self._rate()
        seconds = self.images / 2 / rate if rate else self.wait(model) / 2 if model is not None else 1
        after = max(1, math.ceil(seconds))
        # Who gives a request little time makes no house full.
        outcome = "client_deadline" if reason == "client_deadline" else None
        return ServiceError(Code.OVERLOADED, f"{what}; try again in {after} s", {"Retry-After": str(after)}, outcome)

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Hand out a function that counts bytes of one body as they come; they are given back at the end."""
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self.bytes + size > self.max_bytes:
                raise self.overloaded("bodies_full", f"{self.bytes} bytes of uploads are held")
            self.bytes += size
            held += size

        try:
            yield hold
        finally:
            self.bytes -= held
