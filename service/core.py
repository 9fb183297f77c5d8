"""The serving core: the way of an image from bytes to an engine's answer, whatever protocol brought it."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from models.cpus import available_cpus
from models.preprocessing import prepare
from service.errors import Code, ServiceError, not_ready
from service.http.keys import inference_keys, management_keys
from service.inference.admission import REASONS, Admission
from service.inference.batcher import Batcher, Payload, Work
from service.inference.decoder import SMALL_PIXELS, Decoder
from service.inference.result import ImageResult
from service.repository.loaded_model import LoadedModel
from service.repository.loading import load_version
from service.repository.repository import Repository
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.timing import Timing

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

log = logging.getLogger("skipnet.core")

SMALL_JSON = 64 << 10
"""Bytes that are read at once, whoever else reads."""
LEAST_PATIENCE = 1.0
"""Seconds that the engine's batch has to end, even where requests took all the time there was."""


class Core:
    """Everything between a protocol and the engines: repository, decoding, queue, health."""

    def __init__(self, settings: Settings, load: Callable[[Path], LoadedModel] | None = None) -> None:
        cpus = available_cpus()
        self.settings = settings
        self.metrics = Metrics()
        self.batcher = Batcher(
            settings.max_batch_size,
            settings.batch_delay,
            settings.dense_sample_interval,
            self.metrics.count_batch,
            self._dropped,
        )
        self.repository = Repository(
            settings.model_repository,
            load or partial(load_version, options=settings, max_batch_size=settings.max_batch_size),
            self._on_loaded,
            self._on_retired,
            settings.default_model,
        )
        self.admission = Admission(
            settings.max_queue_size,
            settings.max_bodies_size,
            settings.request_timeout,
            lambda: self.batcher.rate,
            self._rejected,
        )
        self._unfolding = asyncio.Semaphore(1)
        self.decoder = Decoder(settings.max_image_pixels, settings.max_decode_memory)
        self._decoding = ThreadPoolExecutor(settings.decode_threads or cpus, thread_name_prefix="decode")
        self.inference_keys = inference_keys(settings)
        self.management_keys = management_keys(settings)
        self.tracing: Tracing | None = None
        if settings.tracing:
            from service.telemetry import tracing

            self.tracing = tracing.Tracing()
        self.draining = False
        self.closed = False  # draining, and past the pause in which new requests are still answered
        self._over = math.inf  # when whatever still runs is given up, as perf_counter() counts
        self._starting: asyncio.Task[bool] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.metrics.ready.set_function(lambda: not self.not_ready())
        self.metrics.models_failed.set_function(lambda: self.repository.failed)
        self.metrics.in_flight.set_function(lambda: self.admission.images)
        self.metrics.engine_busy.set_function(lambda: self.batcher.busy_for)
        for reason in REASONS:
            self.metrics.rejections.labels(reason)

    async def start(self) -> None:
        """Start the engine thread and begin to load, without waiting: probes are to be answered at once."""
        self.batcher.start(asyncio.get_running_loop())
        self._decoding.submit(self.decoder.warm_up)
        self._starting = asyncio.create_task(self.repository.load_all())
        if self.settings.watch_interval:
            self._watching = asyncio.create_task(self._watch(self._starting, self.settings.watch_interval))

    async def _watch(self, start: asyncio.Task[bool], interval: float) -> None:
        # What begins to be served first is the default, and what is being loaded need not be loaded again.
        await asyncio.wait((start,))
        await self.repository.watch(interval)

    def close(self) -> None:
        """Admit nothing more; what is admitted has as long as the setting says to be finished."""
        self.closed = True
        self._over = min(self._over, perf_counter() + self.settings.drain_timeout)

    async def stop(self) -> None:
        """Finish what is queued and end every thread."""
        self.close()
        for task in (self._starting, self._watching):
            if task is not None:
                task.cancel()
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self.repository.close()
        await asyncio.to_thread(self.batcher.close, max(LEAST_PATIENCE, self._over - perf_counter()))
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    @property
    def loaded(self) -> bool:
        """Whether loading at start is over, with or without success."""
        return self._starting is not None and self._starting.done()

    @property
    def hopeless(self) -> bool:
        """Whether the start left nothing served and nothing will be, short of a request to load."""
        start = self._starting
        failed = start is not None and start.done() and not start.cancelled() and not start.result()
        return failed and not self.repository.loaded and not self.settings.watch_interval

    def not_ready(self) -> list[str]:
        """Return why requests should not be sent here; nothing when they should."""
        default = self.repository.default
        reasons = {
            "draining": self.draining,
            "models are being loaded": not self.loaded,
            f"model {default} is not loaded" if default else "no model is loaded": self.loaded
            and default not in self.repository.loaded,
            "the engine thread is dead": self.loaded and not self.batcher.alive,
            "the engine is stuck": self.batcher.busy_for > self.settings.request_timeout,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def not_live(self) -> list[str]:
        """Return why this process should be restarted; nothing when it should not."""
        reasons = {
            "the engine thread is dead": self.loaded and not self.batcher.alive,
            "the engine is stuck": self.batcher.busy_for > 2 * self.settings.request_timeout,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def accept(self) -> None:
        """Raise ServiceError not_ready where no request can be answered."""
        if self.closed:
            raise not_ready("the server is shutting down", closing=True)
        if self.loaded and not self.batcher.alive:
            raise not_ready("the engine has failed; this server is about to restart")

    def deadline(self, timing: Timing, asked: float | None) -> float:
        """Return when a request is given up, as perf_counter() counts; ``asked`` is in seconds."""
        most = self.settings.request_timeout
        return timing.started + min(most, asked if asked is not None else most)

    async def read(self, body: Awaitable[bytes], deadline: float) -> bytes:
        """Return a request's body; raises ServiceError body_timeout where it does not come in time."""
        try:
            async with asyncio.timeout(deadline - perf_counter()):
                return await body
        except TimeoutError as error:
            raise ServiceError(Code.BODY_TIMEOUT, "the body did not arrive before the deadline") from error

    @asynccontextmanager
    async def unfolding(self, size: int, deadline: float) -> AsyncIterator[None]:
        """Wait for one's turn to read ``size`` bytes of JSON, which take thirty times as many while they are read.

        Raises ServiceError deadline_exceeded.
        """
        if size <= SMALL_JSON:
            yield
            return
        try:
            async with asyncio.timeout(deadline - perf_counter()):
                await self._unfolding.acquire()
        except TimeoutError as error:
            raise ServiceError(Code.DEADLINE, "the deadline passed before the request's JSON was read") from error
        try:
            yield
        finally:
            self._unfolding.release()

    async def run(
        self,
        model: LoadedModel,
        payloads: Sequence[Payload],
        *,
        threshold: float,
        deadline: float,
        timing: Timing,
        gone: Awaitable[object],
    ) -> list[ImageResult]:
        """Decode images, queue them and return what the engine answered, in order.

        The images are already admitted. Raises ServiceError: those of decoding, deadline_exceeded,
        engine_failed, or client_gone once ``gone`` completes; then what is still queued is not computed.
        """
        loop = asyncio.get_running_loop()
        works = [Work(model, threshold, deadline, timing, loop.create_future(), payload=each) for each in payloads]
        if len(works) > 1 or not self._decode_at_once(works[0]):
            for work in works:
                self._decoding.submit(self._decode, work, perf_counter())
        answers = asyncio.gather(*(work.answer for work in works))
        # Nobody awaits it any more after a hang-up or a deadline; unread, its error would be logged as a defect.
        answers.add_done_callback(lambda done: done.cancelled() or done.exception())
        leaving = asyncio.ensure_future(gone)
        try:
            await asyncio.wait(
                (answers, leaving), timeout=deadline - perf_counter(), return_when=asyncio.FIRST_COMPLETED
            )
            if answers.done():
                return answers.result()
            if leaving.done():
                raise ServiceError(Code.CLIENT_GONE, "the client hung up")
            # Timers are a little early, where they are: by its own deadline it may still have time.
            for work in works:
                work.abandoned = "deadline"
            raise ServiceError(Code.DEADLINE, "the deadline passed before the answer was there")
        finally:
            leaving.cancel()
            settled = answers.done()
            answers.cancel()
            for work in works:
                if settled:
                    work.abandoned = "request_failed"
                work.answer.cancel()
                # Its place has been given back, and no bound counts what waits for a decoding thread.
                work.payload = None
            if left := [work for work in works if work.answer.cancelled()]:
                self.batcher.forget(left)

    def _decode_at_once(self, work: Work) -> bool:
        """Make a small network's input of a small image and queue it, in the event loop; return whether it did."""
        spec, started, payload = work.model.checkpoint.config.input, perf_counter(), work.payload
        if not isinstance(payload, bytes) or spec.height * spec.width > SMALL_PIXELS:
            return False
        try:
            image = self.decoder.decode_small(payload, spec.resize)
            if image is None:
                return False
            work.image = prepare(image, spec)
            work.timing.decode = perf_counter() - started
            self.batcher.put(work)
        except Exception as error:
            work.fail(error)
        return True

    def _decode(self, work: Work, submitted: float) -> None:
        """Make the network's input of an image's payload and queue it; runs in a decoding thread."""
        payload, work.payload = work.payload, None
        if not self.batcher.wanted(work) or payload is None:
            return
        started = perf_counter()
        work.waited = started - submitted
        try:
            if isinstance(payload, bytes):
                spec = work.model.checkpoint.config.input
                with self.decoder.decode(payload, spec.resize) as image:
                    work.image = prepare(image, spec)
            else:
                work.image = payload
            work.timing.decode = max(work.timing.decode, perf_counter() - started)
            self.batcher.put(work)
        except Exception as error:
            work.fail(error)

    def _on_loaded(self, model: LoadedModel) -> None:
        self.metrics.add_model(model, partial(self.batcher.depth, model))

    def _on_retired(self, model: LoadedModel) -> None:
        if model.version not in self.repository.loaded.get(model.name, {}):
            self.metrics.remove_model(model)
        self.batcher.retire(model)

    def _dropped(self, model: LoadedModel, reason: str) -> None:
        self.metrics.dropped.labels(model.name, str(model.version), reason).inc()

    def _rejected(self, reason: str) -> None:
        self.metrics.rejections.labels(reason).inc()
