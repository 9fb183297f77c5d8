"""The queue and the engine thread: what queued while the engine was busy is the next batch."""

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.errors import Code, ServiceError
from service.inference.result import ImageResult, split
from service.telemetry.timing import Timing

if TYPE_CHECKING:
    from models.engines.protocol import Routed
    from service.repository.loaded_model import LoadedModel

log = logging.getLogger("skipnet.batching")

REASONS = ("client_gone", "deadline", "request_failed")
"""Why an image is not computed: nobody waits for it, its time is up, or another image of its request failed."""


Payload = bytes | NDArray[np.float32]
"""An image as a client sent it: a file's bytes, or a normalised tensor [3, H, W]."""


@dataclass(eq=False, slots=True)
class Work:
    """One admitted image on its way to ``answer``, which is cancelled when nobody waits for it any more."""

    model: "LoadedModel"
    threshold: float
    deadline: float  # as perf_counter() counts
    timing: Timing
    answer: asyncio.Future[ImageResult]
    image: NDArray[np.float32] | None = None  # [3, H, W], once decoded
    payload: Payload | None = None  # until it is decoded, or nobody waits for it any more
    waited: float = 0.0  # seconds, for a decoding thread
    queued: float = 0.0  # when it joined the engine's queue
    abandoned: str = "client_gone"  # which of REASONS it is, where ``answer`` is cancelled in time

    def fail(self, error: Exception) -> None:
        """Answer with an error, from any thread."""
        self.answer.get_loop().call_soon_threadsafe(self._fail, error)

    def _fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one version of one model that run together, each with a threshold of its own."""

    model: "LoadedModel"
    works: list[Work]
    images: NDArray[np.float32]  # [N, 3, H, W]
    thresholds: NDArray[np.float32]  # [N]

    def rows(self, rows: list[int]) -> "Batch":
        return Batch(self.model, [self.works[i] for i in rows], self.images[rows], self.thresholds[rows])


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch and what came of it; before that it was run dense for ``sampled`` seconds, 0 where it was not."""

    batch: Batch
    routed: "Routed"
    started: float
    seconds: float
    sampled: float


class Batcher:
    """Forms batches and runs them, one at a time, in one thread.

    Several models share the thread, so that they don't fight for the cores; the one whose oldest image waits
    longest is next. ``on_ran`` is called in the event loop with every batch that ran, ``on_dropped`` in any
    thread with every image that was not computed and which of REASONS it was.
    """

    def __init__(
        self,
        max_batch_size: int,
        delay: float,
        dense_interval: float,
        on_ran: Callable[[Ran, NDArray[np.int64]], None],
        on_dropped: Callable[["LoadedModel", str], None],
    ) -> None:
        self.max_batch_size = max_batch_size
        self.delay = delay
        self.dense_interval = dense_interval
        self.on_ran = on_ran
        self.on_dropped = on_dropped
        self.failure: BaseException | None = None
        self._queues: dict[LoadedModel, deque[Work]] = {}
        self._prepared: Batch | None = None
        self._retired: list[LoadedModel] = []
        self._running: Batch | None = None
        self._busy_since: float | None = None
        self._pace: deque[tuple[int, float]] = deque(maxlen=32)  # images and seconds of the last batches
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    def close(self, patience: float) -> None:
        """Run what is queued, then end the thread; give it up after ``patience`` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(patience)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    @property
    def busy_for(self) -> float:
        """Seconds that the batch now in the engine has been there; 0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else perf_counter() - since

    @property
    def rate(self) -> float:
        """Images per second that the engine lately got through while it was busy; 0 when it never was."""
        pace = list(self._pace)
        seconds = sum(seconds for _, seconds in pace)
        return sum(images for images, _ in pace) / seconds if seconds else 0.0

    def depth(self, model: "LoadedModel") -> int:
        """Images that wait for the engine."""
        prepared = self._prepared
        waiting = len(prepared.works) if prepared is not None and prepared.model is model else 0
        return waiting + len(self._queues.get(model, ()))

    def wanted(self, work: Work) -> bool:
        """Return whether to go on with an image; counts one that is dropped, answers one whose time is up."""
        if work.answer.done():
            self.on_dropped(work.model, work.abandoned if perf_counter() < work.deadline else "deadline")
            return False
        if perf_counter() >= work.deadline:
            self.on_dropped(work.model, "deadline")
            work.fail(ServiceError(Code.DEADLINE, "the deadline passed while the image was queued"))
            return False
        return True

    def put(self, work: Work) -> None:
        """Queue a decoded image, in a decoding thread; a full batch is made ready while another runs."""
        work.queued = perf_counter()
        with self._changed:
            if self.failure is not None:
                raise ServiceError(Code.ENGINE_FAILED, "the engine has failed; this server is about to restart")
            if work.model.closed or not self.wanted(work):
                return
            self._queues.setdefault(work.model, deque()).append(work)
            if self._busy_since is not None and self._prepared is None:
                queue = self._next()
                if queue is not None and len(queue) >= self.max_batch_size:
                    self._prepared = self._form(queue)
            self._changed.notify()

    def forget(self, works: Sequence[Work]) -> None:
        """Take images out of the queue that nobody waits for any more, in the event loop: the engine may hang."""
        with self._changed:
            for work in works:
                queue = self._queues.get(work.model)
                if queue is not None and work in queue:
                    queue.remove(work)
                    self.wanted(work)

    def retire(self, model: "LoadedModel") -> None:
        """Let the engine thread close a version's engine; nobody waits for its answers any more."""
        with self._changed:
            model.closed = True
            self._queues.pop(model, None)
            self._retired.append(model)
            self._changed.notify()

    def _main(self) -> None:
        try:
            while (batch := self._take()) is not None:
                self._running, self._busy_since = batch, perf_counter()
                self._run(batch)
                self._running, self._busy_since = None, None
                del batch  # While the next is waited for it would keep its version's weights, unloaded or not.
        except BaseException as error:
            if self._loop.is_closed():
                return  # `close` gave this thread up, and with the loop went all who waited.
            log.exception("the engine thread died")
            with self._changed:
                self.failure = error
                left = [work for queue in self._queues.values() for work in queue]
                left += [work for batch in (self._running, self._prepared) if batch is not None for work in batch.works]
            for work in left:
                work.fail(ServiceError(Code.ENGINE_FAILED, "the engine has failed; this server is about to restart"))

    def _take(self) -> Batch | None:
        """Wait for images; return the next batch, or None when closed and empty."""
        while True:
            self._close_retired()
            with self._changed:
                batch, self._prepared = self._prepared, None
                if batch is not None:
                    alive = [i for i, work in enumerate(batch.works) if self.wanted(work)]
                    batch = batch if len(alive) == len(batch.works) else batch.rows(alive)
                elif (queue := self._next()) is not None:
                    batch = self._form(queue)
                elif not self._retired:
                    oldest = min((queue[0].queued for queue in self._queues.values() if queue), default=None)
                    if oldest is None and self._closing:
                        return None
                    self._changed.wait(None if oldest is None else max(0, oldest + self.delay - perf_counter()))
            if batch is not None and batch.works:
                return batch

    def _next(self) -> deque[Work] | None:
        """Return the queue whose oldest image waits longest, of those that fill a batch or waited the delay."""
        over = math.inf if self._closing else perf_counter() - self.delay
        ready = (q for q in self._queues.values() if q and (len(q) >= self.max_batch_size or q[0].queued <= over))
        return min(ready, key=lambda queue: queue[0].queued, default=None)

    def _close_retired(self) -> None:
        # Without the lock, which the event loop takes: to give back a device's memory can take long.
        while self._retired:
            model = self._retired.pop()
            try:
                model.engine.close()
            except Exception:
                log.exception("%s could not be closed", model)

    def _form(self, queue: deque[Work]) -> Batch | None:
        """Stack the oldest images that someone still waits for; None when there is none, or no memory for them."""
        works: list[Work] = []
        while queue and len(works) < self.max_batch_size:
            work = queue.popleft()
            if self.wanted(work):
                works.append(work)
        if not works:
            return None
        try:
            images = np.stack([work.image for work in works if work.image is not None])
        except Exception:
            log.exception("a batch of %d could not be formed for %s", len(works), works[0].model)
            for work in works:
                work.fail(ServiceError(Code.ENGINE_FAILED, "no batch could be formed of this image; the log says why"))
            return None
        return Batch(works[0].model, works, images, np.asarray([work.threshold for work in works], np.float32))

    def _run(self, batch: Batch) -> None:
        """Run a batch. One that fails is run again image by image: only the image at fault gets an error."""
        try:
            sampled = self._sample_dense(batch)
            started = perf_counter()
            routed = batch.model.engine.run(batch.images, batch.thresholds)
        except Exception as error:
            log.exception("a batch of %d failed in %s", len(batch.works), batch.model)
            if len(batch.works) > 1:
                for i, work in enumerate(batch.works):
                    if self.wanted(work):
                        self._run(batch.rows([i]))
                return
            batch.works[0].fail(ServiceError(Code.ENGINE_FAILED, "the engine failed on this image; the log says why"))
            # Where a blank image fails too, it is the engine that is broken: let the thread die.
            batch.model.probe()
            log.warning("the engine runs on after %s", error.__class__.__name__)
            return
        seconds = perf_counter() - started
        batch.model.clock.ran(seconds)
        self._pace.append((len(batch.works), seconds))
        self._loop.call_soon_threadsafe(self._deliver, Ran(batch, routed, started, seconds, sampled))

    def _sample_dense(self, batch: Batch) -> float:
        """Run a batch with every block where the dense clock asks for it; return the seconds that took, or 0."""
        model, size = batch.model, len(batch.works)
        if not model.clock.due(size, self.dense_interval):
            return 0.0
        seconds = model.run_dense(batch.images)
        model.clock.sampled(size, seconds)
        return seconds

    def _deliver(self, ran: Ran) -> None:
        """Answer a batch's images, in the event loop."""
        macs = ran.batch.model.checkpoint.macs.executed(ran.routed.executed, ran.routed.mode)
        for work, result in zip(ran.batch.works, split(ran.routed, macs), strict=True):
            if not work.answer.done():
                record = work.timing
                record.queue = max(record.queue, work.waited + ran.started - work.queued)
                record.inference = max(record.inference, ran.seconds)
                record.batch_size = max(record.batch_size, len(ran.batch.works))
                work.answer.set_result(result)
        self.on_ran(ran, macs)
        ran.batch.model.mode = ran.routed.mode
