"""The queue and the engine threads. The images that queued while the engines were busy are the next batch."""

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from service.errors import Code, ServiceError
from service.inference.batch import Batch, BatchRun, Lane
from service.inference.image_task import ImageTask
from service.inference.result import ImageResult

if TYPE_CHECKING:
    from service.repository.loaded_model import LoadedModel

log = logging.getLogger("skipnet.batching")

ENGINE_DEAD = "the engine has failed; this server is about to restart"


class Batcher:
    """Forms batches and runs them, one at a time on each device, in one thread for each device.

    All models share the threads, so that engines do not compete for the cores. The next batch is that of the model
    whose oldest image has waited longest. It runs on the device that is free first. ``on_batch`` is called in the event
    loop with every batch that ran and its results. ``on_dropped`` is called in any thread for every image that was not
    computed, with one of DROP_REASONS.
    """

    def __init__(
        self,
        max_batch_size: int,
        delay: float,
        dense_interval: float,
        on_batch: Callable[[BatchRun, list[ImageResult]], None],
        on_dropped: Callable[["LoadedModel", str], None],
    ) -> None:
        """``delay`` is how long an image may wait for a full batch. ``dense_interval`` is that of `DenseClock.due`."""
        self.max_batch_size = max_batch_size
        self.delay = delay
        self.dense_interval = dense_interval
        self.on_batch = on_batch
        self.on_dropped = on_dropped
        self.failure: BaseException | None = None
        self._queues: dict[LoadedModel, deque[ImageTask]] = {}
        self._prepared: Batch | None = None
        self._idle_work: deque[Callable[[int], None]] = deque()
        self._lanes: list[Lane] = []
        self._recent: deque[tuple[int, float]] = deque(maxlen=32)  # image count and seconds of the last batches
        self._changed = threading.Condition()
        self._closing = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the first engine thread. Results are delivered in ``loop``."""
        self._loop = loop
        self.add_threads(1)

    def add_threads(self, count: int) -> None:
        """Start engine threads until there are ``count``: one for each engine of a model."""
        for index in range(len(self._lanes), count):
            lane = Lane(index)
            name = f"engine-{index}" if index else "engine"
            lane.thread = threading.Thread(target=self._main, args=(lane,), name=name, daemon=True)
            self._lanes.append(lane)
            lane.thread.start()

    def close(self, timeout: float) -> None:
        """Run the queued images and end the threads. Stop waiting for them after ``timeout`` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end = perf_counter() + timeout
        for lane in self._lanes:
            lane.thread.join(max(0.0, end - perf_counter()))

    @property
    def threads(self) -> int:
        """The number of engine threads, which is that of batches that run at the same time."""
        return len(self._lanes)

    @property
    def alive(self) -> bool:
        """Return whether every engine thread runs."""
        return self.failure is None and bool(self._lanes) and all(lane.thread.is_alive() for lane in self._lanes)

    @property
    def busy_for(self) -> float:
        """Seconds that the oldest current batch has been in its engine, or 0 if there is none."""
        began = [since for lane in self._lanes if (since := lane.busy_since) is not None]
        return max(0.0, perf_counter() - min(began)) if began else 0.0

    @property
    def rate(self) -> float:
        """Images per second of the last batches while the engines were busy, or 0 before the first batch."""
        recent = list(self._recent)
        seconds = sum(seconds for _, seconds in recent)
        return len(self._lanes) * sum(count for count, _ in recent) / seconds if seconds else 0.0

    @property
    def waiting(self) -> int:
        """The number of images of all models that wait for the engine."""
        return sum(map(self.depth, list(self._queues)))

    def depth(self, model: "LoadedModel") -> int:
        """Return how many images of a model wait for the engine."""
        prepared = self._prepared
        waiting = len(prepared.tasks) if prepared is not None and prepared.model is model else 0
        return waiting + len(self._queues.get(model, ()))

    def is_wanted(self, task: ImageTask) -> bool:
        """Return whether to process an image further.

        If not, it is counted as dropped. It fails if its deadline has passed.
        """
        if task.result.done():
            self.on_dropped(task.model, task.drop_reason if perf_counter() < task.deadline else "deadline")
            return False
        if perf_counter() >= task.deadline:
            self.on_dropped(task.model, "deadline")
            task.fail(ServiceError(Code.DEADLINE, "the deadline passed while the image was queued"))
            return False
        return True

    def put(self, task: ImageTask) -> None:
        """Queue a decoded image, from any thread.

        If it fills a batch while all engines are busy, the calling thread forms the batch.

        Raises ServiceError engine_failed if an engine thread is dead.
        """
        task.queued_at = perf_counter()
        with self._changed:
            if self.failure is not None:
                raise ServiceError(Code.ENGINE_FAILED, ENGINE_DEAD)
            if task.model.closed or not self.is_wanted(task):
                return
            self._queues.setdefault(task.model, deque()).append(task)
            if self._prepared is None and all(lane.busy_since is not None for lane in self._lanes):
                queue = self._next_queue()
                if queue is not None and len(queue) >= self.max_batch_size:
                    self._prepared = self._form(queue)
            self._changed.notify()

    def discard(self, tasks: Sequence[ImageTask]) -> None:
        """Remove cancelled images from the queue at once, because the engine may be stuck."""
        with self._changed:
            for task in tasks:
                queue = self._queues.get(task.model)
                if queue is not None and task in queue:
                    queue.remove(task)
                    self.is_wanted(task)

    def when_idle(self, work: Callable[[int], None]) -> None:
        """Call ``work`` with the number of a device in the device's engine thread when no image waits.

        Images that arrive in the meantime wait until it returns. It must not raise.
        """
        with self._changed:
            self._idle_work.append(work)
            self._changed.notify()

    def retire(self, model: "LoadedModel") -> None:
        """Make each engine thread close its engine of a model that no request uses."""
        with self._changed:
            model.closed = True
            self._queues.pop(model, None)
            for lane in self._lanes:
                lane.retired.append(model)
            self._changed.notify_all()

    def _main(self, lane: Lane) -> None:
        try:
            while (batch := self._take(lane)) is not None:
                lane.busy_since = perf_counter()
                if isinstance(batch, Batch):
                    lane.running = batch
                    self._run(batch, lane.index)
                else:
                    batch(lane.index)
                lane.running, lane.busy_since = None, None
                del batch  # It would keep the weights of an unloaded model in memory until the next batch.
        except BaseException as error:
            if self._loop.is_closed():
                return  # `close` has stopped waiting for this thread, and no request remains.
            log.exception("the thread %s died", lane.thread.name)
            with self._changed:
                self.failure = error
                left = [task for queue in self._queues.values() for task in queue]
                left += [task for batch in (lane.running, self._prepared) if batch is not None for task in batch.tasks]
                self._changed.notify_all()
            for task in left:
                task.fail(ServiceError(Code.ENGINE_FAILED, ENGINE_DEAD))

    def _take(self, lane: Lane) -> Batch | Callable[[int], None] | None:
        """Wait for images and return the next batch. If there are none, return the next work for an idle engine.

        Returns None if the batcher is closed and empty, or if another thread has died.
        """
        while self.failure is None:
            close_retired(lane)
            with self._changed:
                batch, self._prepared = self._prepared, None
                if batch is not None:
                    wanted = [i for i, task in enumerate(batch.tasks) if self.is_wanted(task)]
                    batch = batch if len(wanted) == len(batch.tasks) else batch.select(wanted)
                elif (queue := self._next_queue()) is not None:
                    batch = self._form(queue)
                elif not lane.retired and self.failure is None:
                    oldest = min((queue[0].queued_at for queue in self._queues.values() if queue), default=None)
                    if oldest is None and self._closing:
                        return None
                    if oldest is None and self._idle_work:
                        return self._idle_work.popleft()
                    self._changed.wait(None if oldest is None else max(0, oldest + self.delay - perf_counter()))
            if batch is not None and batch.tasks:
                return batch
        return None

    def _next_queue(self) -> deque[ImageTask] | None:
        """Return the ready queue whose oldest image has waited longest.

        A queue is ready if it fills a batch or its oldest image has waited for the delay.
        """
        latest = math.inf if self._closing else perf_counter() - self.delay
        ready = (q for q in self._queues.values() if q and (len(q) >= self.max_batch_size or q[0].queued_at <= latest))
        return min(ready, key=lambda queue: queue[0].queued_at, default=None)

    def _form(self, queue: deque[ImageTask]) -> Batch | None:
        """Stack the oldest wanted images. Return None if there is none or if memory is short."""
        tasks: list[ImageTask] = []
        while queue and len(tasks) < self.max_batch_size:
            task = queue.popleft()
            if self.is_wanted(task):
                tasks.append(task)
        if not tasks:
            return None
        try:
            images = np.stack([task.image for task in tasks if task.image is not None])
        except Exception:
            log.exception("could not stack %d images into a batch for %s", len(tasks), tasks[0].model)
            for task in tasks:
                task.fail(ServiceError(Code.ENGINE_FAILED, "the image could not be added to a batch; the log says why"))
            return None
        return Batch(tasks[0].model, tasks, images, np.asarray([task.threshold for task in tasks], np.float32))

    def _run(self, batch: Batch, device: int) -> None:
        """Run a batch. If it fails, run its images one by one, so that only the image at fault gets an error."""
        try:
            dense_seconds = self._sample_dense(batch, device)
            started = perf_counter()
            routed = batch.model.engines[device].run(batch.images, batch.thresholds)
        except Exception as error:
            log.exception("a batch of %d failed in %s", len(batch.tasks), batch.model)
            if len(batch.tasks) > 1:
                for i, task in enumerate(batch.tasks):
                    if self.is_wanted(task):
                        self._run(batch.select([i]), device)
                return
            batch.tasks[0].fail(ServiceError(Code.ENGINE_FAILED, "the engine failed on this image; the log says why"))
            # If a blank image fails too, the engine is broken, and the thread ends.
            batch.model.probe(device)
            log.warning("the engine continues after %s", error.__class__.__name__)
            return
        seconds = perf_counter() - started
        batch.model.clock.ran(seconds)
        self._recent.append((len(batch.tasks), seconds))
        self._loop.call_soon_threadsafe(self._deliver, BatchRun(batch, routed, started, seconds, dense_seconds))

    def _sample_dense(self, batch: Batch, device: int) -> float:
        """Run a batch dense if the dense clock is due for a sample. Return its seconds, or 0."""
        model, size = batch.model, len(batch.tasks)
        if not model.clock.due(size, self.dense_interval):
            return 0.0
        seconds = model.run_dense(batch.images, device)
        model.clock.sampled(size, seconds)
        return seconds

    def _deliver(self, run: BatchRun) -> None:
        """Set the results of a batch's images. Runs in the event loop."""
        batch = run.batch
        macs = batch.model.executed_macs(run.routed)
        results = batch.model.results(run.routed, macs)
        for task, result in zip(batch.tasks, results, strict=True):
            if not task.result.done():
                task.queue_seconds = task.decode_wait + run.started - task.queued_at
                task.inference_seconds = run.seconds
                task.batch_size = len(batch.tasks)
                task.result.set_result(result)
        self.on_batch(run, results)
        batch.model.mode = run.routed.mode


def close_retired(lane: Lane) -> None:
    """Close the thread's engines of the models that are no longer used."""
    # This does not hold the lock, which the event loop also takes, because freeing device memory can take long.
    while lane.retired:
        model = lane.retired.pop()
        try:
            model.engines[lane.index].close()
        except Exception:
            log.exception("%s could not be closed", model)
