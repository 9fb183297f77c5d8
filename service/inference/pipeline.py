"""Run an admitted image: decode it, queue it, and run it in a batch."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING

from models.machine import available_cpus
from models.preprocessing import prepare
from service.errors import Code, ServiceError
from service.inference.batch import BatchRun
from service.inference.batcher import Batcher
from service.inference.decoder import SMALL_PIXELS, Decoder
from service.inference.image_task import ImageTask, Payload
from service.inference.result import ImageResult
from service.settings import Settings
from service.telemetry.timing import Timing

if TYPE_CHECKING:
    from service.inference.route import Threshold
    from service.repository.loaded_model import LoadedModel


class Pipeline:
    """Decodes images in threads and runs them in batches on the engine thread.

    ``on_batch`` and ``on_dropped`` are those of `Batcher`.
    """

    def __init__(
        self,
        settings: Settings,
        on_batch: Callable[[BatchRun, list[ImageResult]], None],
        on_dropped: Callable[["LoadedModel", str], None],
    ) -> None:
        self.decoder = Decoder(settings.max_image_pixels, settings.max_decode_memory)
        self.decode_threads = ThreadPoolExecutor(
            settings.decode_threads or available_cpus(), thread_name_prefix="decode"
        )
        self.batcher = Batcher(
            settings.max_batch_size, settings.batch_delay, settings.dense_sample_interval, on_batch, on_dropped
        )

    def start(self) -> None:
        """Start the engine thread and load the decoders. Call it in the event loop."""
        self.batcher.start(asyncio.get_running_loop())
        self.decode_threads.submit(self.decoder.warm_up)

    async def close(self, timeout: float) -> None:
        """Run the queued images and end the threads. Stop waiting for them after ``timeout`` seconds."""
        self.decode_threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.batcher.close, timeout)

    async def run(
        self,
        model: "LoadedModel",
        payloads: Sequence[Payload],
        *,
        threshold: "Threshold",
        deadline: float,
        timing: Timing,
        disconnected: Awaitable[object],
    ) -> list[ImageResult]:
        """Return the results of a request's images in order, and set the stages of ``timing``.

        The images must be admitted. ``deadline`` is in seconds of perf_counter(). ``disconnected`` completes when the
        client disconnects. Images that have not run by then are dropped.

        Raises ServiceError: the errors of `Decoder.decode`, deadline_exceeded, engine_failed or client_gone.
        """
        loop = asyncio.get_running_loop()
        tasks = [ImageTask(model, threshold, deadline, loop.create_future(), payload) for payload in payloads]
        if len(tasks) > 1 or not self._decode_inline(tasks[0]):
            for task in tasks:
                self.decode_threads.submit(self._decode_in_thread, task, perf_counter())
        results = asyncio.gather(*(task.result for task in tasks))
        # This retrieves its error. After a disconnect or a deadline it is not awaited, and asyncio would log the error.
        results.add_done_callback(lambda done: done.cancelled() or done.exception())
        disconnect = asyncio.ensure_future(disconnected)
        reason = "client_gone"
        try:
            await asyncio.wait(
                (results, disconnect), timeout=deadline - perf_counter(), return_when=asyncio.FIRST_COMPLETED
            )
            if results.done():
                reason = "request_failed"
                return results.result()
            if disconnect.done():
                raise ServiceError(Code.CLIENT_GONE, "the client disconnected")
            # The timer may fire a little early, so the tasks' own deadlines may not have passed yet.
            reason = "deadline"
            raise ServiceError(Code.DEADLINE, "the deadline passed before the result was ready")
        finally:
            disconnect.cancel()
            for task in tasks:
                task.cancel(reason)
                task.add_to(timing)
            results.cancel()
            if cancelled := [task for task in tasks if task.result.cancelled()]:
                self.batcher.discard(cancelled)

    def _decode_inline(self, task: ImageTask) -> bool:
        """Decode a small image for a small network in the event loop and queue it. Return whether this was done."""
        spec, started, payload = task.model.input, perf_counter(), task.payload
        if not isinstance(payload, bytes) or spec.height * spec.width > SMALL_PIXELS:
            return False
        try:
            image = self.decoder.decode_small(payload, spec.resize)
            if image is None:
                return False
            task.image = prepare(image, spec)
            task.payload = None
            task.decode_seconds = perf_counter() - started
            self.batcher.put(task)
        except Exception as error:
            task.fail(error)
        return True

    def _decode_in_thread(self, task: ImageTask, submitted: float) -> None:
        """Decode an image and queue it. Runs in a decoding thread."""
        payload, task.payload = task.payload, None
        if not self.batcher.is_wanted(task) or payload is None:
            return
        started = perf_counter()
        task.decode_wait = started - submitted
        try:
            if isinstance(payload, bytes):
                spec = task.model.input
                with self.decoder.decode(payload, spec.resize) as image:
                    task.image = prepare(image, spec)
            else:
                task.image = payload
            task.decode_seconds = perf_counter() - started
            self.batcher.put(task)
        except Exception as error:
            task.fail(error)
