import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest

from service.inference.result import ImageResult
from service.repository.loaded_model import LoadedModel
from service.telemetry.timing import Timing
from tests.service.observed_batcher import ObservedBatcher, Pixels, hold, running, sizes
from tests.service.parts import ControlledEngine, engine_of, until


@pytest.mark.parametrize(("queued", "batches"), [(1, [1]), (4, [4]), (5, [4, 1]), (11, [4, 4, 3])])
def test_images_queued_while_the_engine_is_busy_are_the_next_batch(
    model: LoadedModel, decoded: Callable[[int], Pixels], queued: int, batches: list[int]
) -> None:
    async def scenario() -> None:
        async with running() as queue:
            futures = [await hold(queue, model, decoded(0))]
            futures += [queue.put(model, decoded(i)) for i in range(queued)]
            assert queue.batcher.depth(model) == queued
            engine_of(model).open.set()
            await asyncio.gather(*futures)
            assert queue.batcher.depth(model) == 0

    asyncio.run(scenario())
    assert sizes(model) == [1, *batches]


def test_a_full_batch_is_formed_while_the_engine_is_busy(model: LoadedModel, decoded: Callable[[int], Pixels]) -> None:
    async def scenario() -> None:
        async with running() as queue:
            futures = [await hold(queue, model, decoded(0))]
            futures += [queue.put(model, decoded(i)) for i in range(3)]
            assert queue.batcher._prepared is None
            futures.append(queue.put(model, decoded(3)))
            assert queue.batcher._prepared is not None
            assert queue.batcher._prepared.images.shape == (4, 3, 32, 32)
            engine_of(model).open.set()
            await asyncio.gather(*futures)

    asyncio.run(scenario())


def test_results_do_not_depend_on_other_images_and_thresholds_of_the_batch(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    thresholds = [0.0, 0.3, model.checkpoint.config.execute_threshold, 1.0]
    alone = [model.engine.run(decoded(i)[None], np.asarray([thresholds[i]], np.float32)) for i in range(4)]

    async def scenario() -> list[ImageResult]:
        async with running() as queue:
            first = await hold(queue, model, decoded(9))
            futures = [queue.put(model, decoded(i), thresholds[i]) for i in range(4)]
            engine_of(model).open.set()
            await first
            return list(await asyncio.gather(*futures))

    engine_of(model).batches.clear()
    while not engine_of(model).entered.empty():
        engine_of(model).entered.get()
    together = asyncio.run(scenario())
    assert sizes(model) == [1, 4]
    for one, result in zip(alone, together, strict=True):
        np.testing.assert_allclose(result.logits, one.logits[0], atol=1e-4)
        assert np.array_equal(result.executed, one.executed[0])
    assert together[0].executed.all()
    assert not together[3].executed.any()
    assert together[3].macs < together[0].macs


def test_cancelled_images_leave_the_queue_of_a_stuck_engine(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    async def scenario() -> None:
        async with running() as queue:
            first = await hold(queue, model, decoded(0))
            ready = [queue.put(model, decoded(i)) for i in range(4)]  # the next batch, which is already formed
            for _ in range(50):
                tasks = [queue.task(model, decoded(i)) for i in range(3)]
                for task in tasks:
                    queue.batcher.put(task)
                    task.result.cancel()
                queue.batcher.discard(tasks)
                late = queue.task(model, decoded(0))
                late.result.cancel()
                queue.batcher.put(late)  # decoded after its client disconnected
            assert queue.batcher.depth(model) == 4
            assert queue.dropped == 200 * ["client_gone"]
            engine_of(model).open.set()
            await asyncio.gather(first, *ready)

    asyncio.run(scenario())
    assert sizes(model) == [1, 4]


def test_models_do_not_mix_and_the_one_that_waited_longest_is_next(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    other = replace(model, engine=ControlledEngine(engine_of(model).engine))

    async def scenario() -> None:
        async with running() as queue:
            futures = [await hold(queue, model, decoded(0))]
            futures += [queue.put(each, decoded(i), 0.1 * i) for i, each in enumerate([other, model, other, model])]
            engine_of(model).open.set()
            await asyncio.gather(*futures)
            assert [run.batch.model for run in queue.runs] == [model, other, model]

    asyncio.run(scenario())
    assert engine_of(other).batches[0].tolist() == pytest.approx([0.0, 0.2])
    assert engine_of(model).batches[1].tolist() == pytest.approx([0.1, 0.3])


def test_a_model_with_full_batches_does_not_keep_another_waiting(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    other = replace(model, engine=ControlledEngine(engine_of(model).engine))

    async def scenario() -> None:
        async with running(max_batch_size=2) as queue:
            futures = [await hold(queue, model, decoded(0))]
            futures += [queue.put(each, decoded(1)) for each in (other, model, model)]
            engine_of(model).open.set()
            await asyncio.gather(*futures)
            assert [run.batch.model for run in queue.runs] == [model, other, model]

    asyncio.run(scenario())


def test_a_full_batch_does_not_wait_for_the_delay_of_another_model(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    other = replace(model, engine=ControlledEngine(engine_of(model).engine))

    async def scenario() -> None:
        async with running(max_batch_size=2, delay=30) as queue:
            first = queue.put(other, decoded(0))
            await asyncio.wait_for(asyncio.gather(*(queue.put(model, decoded(i)) for i in range(2))), 20)
            assert not first.done()
        await first

    asyncio.run(scenario())


def test_delay_waits_for_a_full_batch_from_the_first_image_on(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    async def scenario() -> None:
        async with running(max_batch_size=3, delay=30) as queue:
            await asyncio.gather(*(queue.put(model, decoded(i)) for i in range(3)))
        assert sizes(model) == [3]
        async with running(max_batch_size=3, delay=0.01) as queue:
            start = perf_counter()
            await queue.put(model, decoded(0))
            assert perf_counter() - start >= 0.01
        assert sizes(model) == [3, 1]

    asyncio.run(scenario())


def test_close_finishes_queued_images(model: LoadedModel, decoded: Callable[[int], Pixels]) -> None:
    async def scenario() -> None:
        queue = ObservedBatcher(delay=30)
        queue.batcher.start(asyncio.get_running_loop())
        futures = [queue.put(model, decoded(i)) for i in range(2)]
        await asyncio.to_thread(queue.batcher.close, 20)
        await asyncio.gather(*futures)
        assert not queue.batcher.alive

    asyncio.run(scenario())


def test_timing_and_rate(model: LoadedModel, decoded: Callable[[int], Pixels]) -> None:
    async def scenario() -> None:
        async with running() as queue:
            assert queue.batcher.rate == 0
            await hold(queue, model, decoded(0))
            assert queue.batcher.busy_for > 0
            timing, queued = Timing(), perf_counter()
            task = queue.task(model, decoded(1), decode_wait=3.0)
            queue.batcher.put(task)
            engine_of(model).open.set()
            await task.result
            task.add_to(timing)
            assert 3 < timing.queue < 3 + perf_counter() - queued
            assert 0 < timing.inference < perf_counter() - queued
            assert timing.batch_size == 1
            seconds = sum(run.seconds for run in queue.runs)
            assert queue.batcher.rate == pytest.approx(2 / seconds)
            until(lambda: queue.batcher.busy_for == 0)

    asyncio.run(scenario())


def test_retired_engine_is_closed_by_the_engine_thread(model: LoadedModel, decoded: Callable[[int], Pixels]) -> None:
    closed_in: list[str] = []
    engine_of(model).close = lambda: closed_in.append(threading.current_thread().name)  # type: ignore[method-assign]

    async def scenario() -> None:
        async with running() as queue:
            first = await hold(queue, model, decoded(0))
            queue.batcher.retire(model)
            assert not closed_in
            engine_of(model).open.set()
            await first
            until(lambda: closed_in == ["engine"])
            late = queue.put(model, decoded(1))
            assert queue.batcher.depth(model) == 0
            late.cancel()

    asyncio.run(scenario())


def test_an_unloaded_model_is_freed(model: LoadedModel, decoded: Callable[[int], Pixels]) -> None:
    async def scenario() -> None:
        async with running() as queue:
            # This is not the fixture's model, which the test keeps in memory.
            own, closed = replace(model, engine=ControlledEngine(engine_of(model).engine)), threading.Event()
            engine_of(own).close = closed.set  # type: ignore[method-assign]
            left = weakref.ref(own.engine)
            await queue.put(own, decoded(0))
            queue.batcher.retire(own)
            assert await asyncio.to_thread(closed.wait, 20)
            queue.runs.clear()
            del own

            def freed() -> bool:
                gc.collect()
                return left() is None

            until(freed)

    asyncio.run(scenario())


def test_a_slow_close_of_an_engine_does_not_block_the_queue(
    model: LoadedModel, decoded: Callable[[int], Pixels]
) -> None:
    other = replace(model, engine=ControlledEngine(engine_of(model).engine))
    closing, release = threading.Event(), threading.Event()
    released: list[bool] = []

    def close() -> None:
        closing.set()
        released.append(release.wait(2))

    engine_of(model).close = close  # type: ignore[method-assign]

    async def scenario() -> None:
        async with running() as queue:
            queue.batcher.retire(model)
            assert closing.wait(20)
            future = queue.put(other, decoded(0))
            release.set()
            await future
            assert released == [True]

    asyncio.run(scenario())
