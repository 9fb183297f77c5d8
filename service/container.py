"""Build the parts of one server from its settings, and connect them."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from models.remote.files import remote_url
from models.remote.mirror import Mirror, default_cache
from service.health import Health
from service.http.body import JsonTurn
from service.http.keys import inference_keys, management_keys
from service.inference.admission import Admission
from service.inference.batch import BatchRun
from service.inference.degradation import Degradation, Limits
from service.inference.pipeline import Pipeline
from service.inference.result import ImageResult
from service.repository.loaded_model import LoadedModel
from service.repository.loading import load_version
from service.repository.repository import Repository
from service.repository.watcher import Watcher
from service.rollout.canary import Canary
from service.rollout.shadow import Shadow
from service.rollout.shares import parse_shares, versions_beside
from service.settings import Settings
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

MIN_CLOSE_SECONDS = 1.0
"""Seconds that the last batch may take, even if the drain timeout has passed."""


class Container:
    """Builds and connects the parts that routes and middleware use.

    ``load`` reads a version's folder. The default is `load_version`.
    """

    def __init__(self, settings: Settings, load: Callable[[Path], LoadedModel] | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.pipeline = Pipeline(settings, self._count_batch, self.metrics.count_dropped)
        mirror = mirror_of(settings)
        canaries, shadows = parse_shares(settings.canary, "--canary"), parse_shares(settings.shadow, "--shadow")
        self.repository = Repository(
            settings.model_repository if mirror is None else mirror.folder,
            load or partial(load_version, options=settings, max_batch_size=settings.max_batch_size),
            self._add_model,
            self._remove_model,
            settings.default_model,
            None if mirror is None else mirror.refresh,
            versions_beside(canaries, shadows),
        )
        self.canary = Canary(canaries, settings.canary_header, self.repository.is_loaded)
        self.watcher = Watcher(self.repository, settings.watch_interval)
        batcher = self.pipeline.batcher
        self.shadow = Shadow(shadows, self.repository, batcher, self.metrics.shadows)
        self.admission = Admission(
            settings.max_queue_size,
            settings.max_bodies_size,
            settings.request_timeout,
            lambda: batcher.rate,
            self.metrics.count_rejected,
        )
        limits = None if settings.degrade_to is None else Limits(settings.degrade_to, settings.degrade_loss)
        self.degradation = Degradation(limits, settings.max_batch_size, lambda: batcher.waiting)
        self.health = Health(self.repository, self.watcher, batcher, settings.request_timeout)
        self.json_turn = JsonTurn()
        self.inference_keys = inference_keys(settings)
        self.management_keys = management_keys(settings)
        self.tracing = make_tracing() if settings.tracing else None
        self.metrics.ready.set_function(lambda: not self.health.not_ready())
        self.metrics.models_failed.set_function(lambda: self.repository.failed)
        self.metrics.in_flight.set_function(lambda: self.admission.image_count)
        self.metrics.degraded_share.set_function(lambda: self.degradation.share)
        self.metrics.engine_busy.set_function(lambda: batcher.busy_for)
        self._close_by: float | None = None  # in seconds of perf_counter()

    def lease(
        self, model: str | None, version: int | None, headers: Mapping[str, str]
    ) -> AbstractContextManager[LoadedModel]:
        """Provide the model of a request, as `LoadedVersions.lease` does. Without a version it may be a canary."""
        if version is None:
            version = self.canary.version_for(model or self.repository.default, headers)
        return self.repository.lease(model, version)

    async def start(self) -> None:
        """Start the threads and begin to load models.

        This does not wait for the models, so that probes get responses at once.
        """
        self.pipeline.start()
        self.watcher.start()

    def close(self) -> None:
        """Refuse new requests. The first call starts the drain timeout of the admitted ones."""
        self.health.closed = True
        if self._close_by is None:
            self._close_by = perf_counter() + self.settings.drain_timeout

    async def stop(self) -> None:
        """Finish the queued images and end every thread."""
        self.close()
        self.watcher.close()
        self.repository.close()
        assert self._close_by is not None
        await self.pipeline.close(max(MIN_CLOSE_SECONDS, self._close_by - perf_counter()))
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    def _add_model(self, model: LoadedModel) -> None:
        self.pipeline.batcher.add_threads(len(model.engines))
        self.metrics.engine_threads.set(self.pipeline.batcher.threads)
        self.metrics.add_model(model, partial(self.pipeline.batcher.depth, model))
        self.shadow.add_model(model)

    def _count_batch(self, run: BatchRun, results: list[ImageResult]) -> None:
        self.metrics.count_batch(run, results)
        self.shadow.observe(run, results)

    def _remove_model(self, model: LoadedModel) -> None:
        if model.version not in self.repository.loaded.get(model.name, {}):
            self.metrics.remove_model(model)
        self.pipeline.batcher.retire(model)


def mirror_of(settings: Settings) -> Mirror | None:
    """Return the mirror of a remote model repository, or None for a local one.

    Raises UserError if the packages are missing or the address is wrong.
    """
    url = remote_url(settings.model_repository)
    return None if url is None else Mirror(url, settings.model_cache or default_cache())


def make_tracing() -> "Tracing":
    # Imports OpenTelemetry, which most servers do not need.
    from service.telemetry.tracing import Tracing

    return Tracing()
