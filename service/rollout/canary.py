"""A canary: a version that serves a small share of a model's requests before it serves all of them."""

import random
from collections.abc import Callable, Mapping
from hashlib import blake2b

from service.rollout.shares import Share


class Canary:
    """Chooses which requests without a version go to a canary.

    A request with the header ``header`` always gets the same version, in every process and replica: the header's value
    decides. A larger share keeps the clients that had the canary before. ``is_served`` returns whether a model's
    version is loaded.
    """

    def __init__(self, shares: Mapping[str, Share], header: str, is_served: Callable[[str, int], bool]) -> None:
        self.shares = shares
        self.header = header.lower()
        self._is_served = is_served

    def version_for(self, model: str | None, headers: Mapping[str, str]) -> int | None:
        """Return the canary's version if the request goes to it, else None.

        The names of ``headers`` are in lower case, or found in any case.
        """
        share = self.shares.get(model or "")
        if model is None or share is None or share.version is None or not self._is_served(model, share.version):
            return None
        client = headers.get(self.header, "")
        drawn = position(f"{model}/{share.version}/{client}") if client else random.random()
        return share.version if drawn < share.share else None


def position(text: str) -> float:
    """Return a number in 0..1 that depends only on ``text`` and is uniformly distributed."""
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big") / 2**64
