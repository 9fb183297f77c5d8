"""Decide whether this process is live, ready and accepts requests."""

from service.errors import not_ready
from service.inference.batcher import Batcher
from service.repository.repository import Repository
from service.repository.watcher import Watcher


class Health:
    """Determines the state of a server's repository and engine thread. Use it in the event loop."""

    def __init__(self, repository: Repository, watcher: Watcher, batcher: Batcher, request_timeout: float) -> None:
        self.draining = False  # SIGTERM was received: not ready, but requests are still served
        self.closed = False  # the drain pause is over: new requests are refused
        self._repository = repository
        self._watcher = watcher
        self._batcher = batcher
        self._request_timeout = request_timeout

    def not_ready(self) -> list[str]:
        """Return the reasons why this process is not ready. It is ready if there are none."""
        default, startup_done = self._repository.default, self._watcher.startup_done
        # The other models do not count: requests for one that is still being loaded get 503 with Retry-After.
        missing = default not in self._repository.loaded
        reasons = {
            "draining": self.draining,
            "models are being loaded": missing and not startup_done,
            f"model {default} is not loaded" if default else "no model is loaded": missing and startup_done,
            "the engine thread is dead": self._engine_dead,
            "the engine is stuck": self._batcher.busy_for > self._request_timeout,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def not_live(self) -> list[str]:
        """Return the reasons to restart this process. It is live if there are none."""
        reasons = {
            "the engine thread is dead": self._engine_dead,
            "the engine is stuck": self._batcher.busy_for > 2 * self._request_timeout,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def require_accepting(self) -> None:
        """Raise ServiceError not_ready if this process can serve no new request."""
        if self.closed:
            raise not_ready("the server is shutting down", closing=True)
        if self._engine_dead:
            raise not_ready("the engine has failed; this server is about to restart")

    @property
    def _engine_dead(self) -> bool:
        return (self._watcher.startup_done or bool(self._repository.loaded)) and not self._batcher.alive
