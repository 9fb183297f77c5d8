"""A running batcher for tests, which records its batches and the images that it dropped."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.batch import BatchRun
from service.inference.batcher import Batcher
from service.inference.image_task import ImageTask
from service.inference.result import ImageResult
from service.repository.loaded_model import LoadedModel
from tests.service.parts import engine_of

Pixels = NDArray[np.float32]


class ObservedBatcher:
    """A batcher that records its batches and the reasons of dropped images."""

    def __init__(self, max_batch_size: int = 4, delay: float = 0) -> None:
        self.runs: list[BatchRun] = []
        self.dropped: list[str] = []
        self.batcher = Batcher(
            max_batch_size,
            delay,
            0,
            lambda run, _: self.runs.append(run),
            lambda _, reason: self.dropped.append(reason),
        )

    def put(
        self, model: LoadedModel, image: Pixels, threshold: float = 0.5, timeout: float = 20, **fields: Any
    ) -> asyncio.Future[ImageResult]:
        task = self.task(model, image, threshold, timeout, **fields)
        self.batcher.put(task)
        return task.result

    def task(
        self, model: LoadedModel, image: Pixels, threshold: float = 0.5, timeout: float = 20, **fields: Any
    ) -> ImageTask:
        result: asyncio.Future[ImageResult] = asyncio.get_running_loop().create_future()
        return ImageTask(model, threshold, perf_counter() + timeout, result, image=image, **fields)


@asynccontextmanager
async def running(max_batch_size: int = 4, delay: float = 0) -> AsyncIterator[ObservedBatcher]:
    queue = ObservedBatcher(max_batch_size, delay)
    queue.batcher.start(asyncio.get_running_loop())
    try:
        yield queue
    finally:
        await asyncio.to_thread(queue.batcher.close, 20)


async def hold(queue: ObservedBatcher, model: LoadedModel, image: Pixels) -> asyncio.Future[ImageResult]:
    """Occupy the engine with one image until the test opens it, so that further images queue."""
    engine_of(model).open.clear()
    first = queue.put(model, image)
    assert await asyncio.to_thread(engine_of(model).entered.get, True, 20) == 1
    return first


def sizes(model: LoadedModel) -> list[int]:
    return [len(batch) for batch in engine_of(model).batches]
