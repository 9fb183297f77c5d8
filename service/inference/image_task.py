"""One image in the pipeline, from the client's payload to the engine's result."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.inference.result import ImageResult
from service.telemetry.timing import Timing

if TYPE_CHECKING:
    from service.inference.route import Threshold
    from service.repository.loaded_model import LoadedModel

DROP_REASONS = ("client_gone", "deadline", "request_failed")
"""Why an image is not computed: its client disconnected, its deadline passed, or its request failed."""

Payload = bytes | NDArray[np.float32]
"""An image as a client sent it: an encoded file, or a normalised tensor float32 [3, H, W]."""


@dataclass(eq=False, slots=True)
class ImageTask:
    """One admitted image. It has one owner at a time, and only the owner writes its fields.

    1. `Pipeline.run` creates the task with a ``payload``, in the event loop.
    2. A decoding thread replaces the payload with ``image``. For a small image the event loop does.
    3. `Batcher.put` queues the task. The engine thread takes it out again and runs it in a batch.
    4. `Batcher` sets ``result`` in the event loop.

    `Pipeline.run` may call `cancel` at any of these steps. The owner then drops the task at its next step
    (`Batcher.is_wanted`).
    """

    model: "LoadedModel"
    threshold: "Threshold"
    deadline: float  # in seconds of perf_counter()
    result: asyncio.Future[ImageResult]
    payload: Payload | None = None  # None once decoded or cancelled
    image: NDArray[np.float32] | None = None  # [3, H, W], once decoded
    decode_wait: float = 0.0  # seconds until a decoding thread was free
    decode_seconds: float = 0.0
    queued_at: float = 0.0  # when the batcher queued it, in seconds of perf_counter()
    queue_seconds: float = 0.0  # decode_wait and the wait for the engine
    inference_seconds: float = 0.0  # the run of its batch
    batch_size: int = 0
    drop_reason: str = "client_gone"  # one of DROP_REASONS, counted if the task is cancelled before its deadline

    def cancel(self, reason: str) -> None:
        """Release the payload, and cancel the result if it is not set. Call it in the event loop."""
        self.drop_reason = reason
        self.payload = None
        self.result.cancel()

    def fail(self, error: Exception) -> None:
        """Set an error as the result, from any thread."""
        self.result.get_loop().call_soon_threadsafe(self._fail, error)

    def add_to(self, timing: Timing) -> None:
        """Add the task's stages to its request's timing, which has the slowest image of each stage."""
        timing.decode = max(timing.decode, self.decode_seconds)
        timing.queue = max(timing.queue, self.queue_seconds)
        timing.inference = max(timing.inference, self.inference_seconds)
        timing.batch_size = max(timing.batch_size, self.batch_size)

    def _fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)
