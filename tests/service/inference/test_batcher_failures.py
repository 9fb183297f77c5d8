"""Failures of an image, its client or the engine, and their effect on other images."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from service.errors import Code, ServiceError
from service.inference.result import ImageResult
from service.repository.loaded_model import LoadedModel
from tests.service.observed_batcher import Pixels, hold, running, sizes
from tests.service.parts import engine_of, until


def test_a_cancelled_image_is_dropped_before_the_engine_and_counted(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    async def scenario() -> None:
        async with running() as queue:
            first = await hold(queue, model, decoded(0))
            left, stays = queue.put(model, decoded(1), 0.1), queue.put(model, decoded(2), 0.2)
            left.cancel()
            engine_of(model).open.set()
            await asyncio.gather(first, stays)
            assert queue.dropped == ["client_gone"]

    asyncio.run(scenario())
    assert [batch.tolist() for batch in engine_of(model).batches] == [[0.5], [pytest.approx(0.2)]]


def test_drops_after_a_failed_request_are_not_counted_as_disconnects(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    async def scenario() -> None:
        async with running() as queue:
            first = await hold(queue, model, decoded(0))
            queue.put(model, decoded(1), drop_reason="request_failed").cancel()
            queue.put(model, decoded(2), timeout=0, drop_reason="request_failed").cancel()
            engine_of(model).open.set()
            await first
        assert sorted(queue.dropped) == ["deadline", "request_failed"]

    asyncio.run(scenario())


def test_cancelled_images_of_a_prepared_batch_are_dropped(model: LoadedModel, decoded: Callable[[int], Pixels]) -> None:
    async def scenario() -> None:
        async with running() as queue:
            first = await hold(queue, model, decoded(0))
            futures = [queue.put(model, decoded(i), i / 10) for i in range(4)]
            futures[1].cancel()
            futures[3].cancel()
            engine_of(model).open.set()
            results = await asyncio.gather(first, futures[0], futures[2])
            alone = engine_of(model).engine.run(decoded(2)[None], np.asarray([0.2], np.float32))
            np.testing.assert_allclose(results[2].logits, alone.logits[0], atol=1e-4)

    asyncio.run(scenario())
    assert engine_of(model).batches[1].tolist() == pytest.approx([0.0, 0.2])


def test_an_image_that_expired_in_the_queue_is_not_computed(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    async def scenario() -> None:
        async with running() as queue:
            first = await hold(queue, model, decoded(0))
            late = queue.put(model, decoded(1), timeout=0)
            engine_of(model).open.set()
            await first
            with pytest.raises(ServiceError) as caught:
                await late
            assert caught.value.code == Code.DEADLINE
            assert queue.dropped == ["deadline"]

    asyncio.run(scenario())
    assert sizes(model) == [1]


def test_an_image_that_fails_does_not_fail_its_batch(model: LoadedModel, decoded: Callable[[int], Pixels]) -> None:
    poison = decoded(1)
    engine_of(model).fails = lambda images: any(np.array_equal(image, poison) for image in images)

    async def scenario() -> None:
        async with running() as queue:
            first = await hold(queue, model, decoded(0))
            futures = [queue.put(model, decoded(i)) for i in range(3)]
            engine_of(model).open.set()
            good, bad, also_good = await asyncio.gather(*futures, return_exceptions=True)
            await first
            assert isinstance(bad, ServiceError)
            assert bad.code == Code.ENGINE_FAILED
            assert isinstance(good, ImageResult)
            assert isinstance(also_good, ImageResult)
            assert queue.batcher.alive

    asyncio.run(scenario())


def test_a_failed_batch_is_rerun_for_the_images_that_are_still_wanted(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    async def scenario() -> None:
        async with running() as queue:
            first = await hold(queue, model, decoded(0))
            futures = [queue.put(model, decoded(i), i / 10) for i in range(3)]

            def fails(images: Pixels) -> bool:
                if len(images) == 3:
                    futures[1].get_loop().call_soon_threadsafe(futures[1].cancel)
                    until(futures[1].done)
                return len(images) == 3

            engine_of(model).fails = fails
            engine_of(model).open.set()
            await asyncio.gather(first, futures[0], futures[2])
            assert queue.dropped == ["client_gone"]

    asyncio.run(scenario())
    assert sizes(model) == [1, 3, 1, 1]
    assert engine_of(model).batches[3].tolist() == [pytest.approx(0.2)]


def test_a_batch_that_cannot_be_stacked_fails_only_its_images(
    model: LoadedModel, decoded: Callable[[int], Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_: object) -> None:
        raise MemoryError

    async def scenario() -> None:
        async with running() as queue:
            first = await hold(queue, model, decoded(0))
            images = [decoded(i) for i in range(4)]
            with monkeypatch.context() as patch:
                patch.setattr(np, "stack", no_memory)
                # The fourth fills a batch, which the calling thread forms at once.
                lost = [queue.put(model, image) for image in images]
            engine_of(model).open.set()
            for result in await asyncio.wait_for(asyncio.gather(*lost, return_exceptions=True), 20):
                assert isinstance(result, ServiceError)
                assert result.code == Code.ENGINE_FAILED
            await asyncio.gather(first, queue.put(model, decoded(5)))
            assert queue.batcher.alive

    asyncio.run(scenario())


def test_a_broken_engine_ends_the_thread_and_fails_all_images(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    async def scenario() -> None:
        async with running() as queue:
            futures = [await hold(queue, model, decoded(0))]
            futures += [queue.put(model, decoded(i)) for i in range(6)]
            engine_of(model).fails = lambda _: True
            engine_of(model).open.set()
            for result in await asyncio.gather(*futures, return_exceptions=True):
                assert isinstance(result, ServiceError)
                assert result.code == Code.ENGINE_FAILED
            until(lambda: not queue.batcher.alive)
            with pytest.raises(ServiceError):
                queue.put(model, decoded(0))

    asyncio.run(scenario())
