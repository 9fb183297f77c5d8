"""Several engines behind one queue: batches at the same time, results and metrics as with one engine."""

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models.engines.selection import find_devices
from service.errors import Code, ServiceError
from service.repository.loaded_model import LoadedModel
from service.settings import Settings
from tests.service.observed_batcher import Pixels, running
from tests.service.parts import NAME, ControlledEngine, Running, encoded, engine_of, picture, post, until, write_random


@pytest.fixture
def second(model: LoadedModel) -> ControlledEngine:
    """The engine of a second device."""
    return ControlledEngine(engine_of(model).engine)


@pytest.fixture
def pair(model: LoadedModel, second: ControlledEngine) -> LoadedModel:
    """The model with an engine on each of two devices. Both notify one queue when a batch starts."""
    second.entered = engine_of(model).entered
    return replace(model, others=(second,))


async def hold_both(engines: tuple[ControlledEngine, ControlledEngine], put: Callable[[], asyncio.Future]) -> list:  # type: ignore[type-arg]
    """Occupy both engines with an image each until the test opens them."""
    results = []
    for engine in engines:
        engine.open.clear()
    for _ in engines:
        results.append(put())
        await asyncio.to_thread(engines[0].entered.get, True, 20)
    return results


def test_each_engine_takes_a_batch_at_the_same_time(
    pair: LoadedModel, second: ControlledEngine, decoded: Callable[[int], Pixels]
) -> None:
    first = engine_of(pair)

    async def scenario() -> None:
        async with running(max_batch_size=4) as observed:
            observed.batcher.add_threads(2)
            futures = await hold_both((first, second), lambda: observed.put(pair, decoded(0)))
            assert [len(engine.batches) for engine in (first, second)] == [1, 1]
            futures += [observed.put(pair, decoded(i)) for i in range(5)]
            assert observed.batcher.depth(pair) == 5
            second.open.set()
            # The free engine takes the queued images while the other one is still busy.
            await asyncio.gather(*futures[2:])
            assert [future.done() for future in futures[:2]].count(True) == 1
            assert [len(batch) for batch in second.batches] == [1, 4, 1]
            first.open.set()
            results = await asyncio.gather(*futures)
            # Three times the same image.
            assert len({result.macs for result in results[:3]}) == 1

    asyncio.run(scenario())


def test_each_thread_closes_its_own_engine(
    pair: LoadedModel, second: ControlledEngine, decoded: Callable[[int], Pixels]
) -> None:
    closed: queue.Queue[tuple[str, str]] = queue.Queue()
    engine_of(pair).close = lambda: closed.put(("first", threading.current_thread().name))  # type: ignore[method-assign]
    second.close = lambda: closed.put(("second", threading.current_thread().name))  # type: ignore[method-assign]

    async def scenario() -> None:
        async with running() as observed:
            observed.batcher.add_threads(2)
            await observed.put(pair, decoded(0))
            observed.batcher.retire(pair)
            found = {await asyncio.to_thread(closed.get, True, 20) for _ in range(2)}
            assert found == {("first", "engine"), ("second", "engine-1")}

    asyncio.run(scenario())


def test_a_stuck_engine_is_reported_and_a_broken_one_fails_queued_images(
    pair: LoadedModel, second: ControlledEngine, decoded: Callable[[int], Pixels]
) -> None:
    first = engine_of(pair)

    async def scenario() -> None:
        async with running() as observed:
            observed.batcher.add_threads(2)
            futures = await hold_both((first, second), lambda: observed.put(pair, decoded(0)))
            queued = observed.put(pair, decoded(1))
            first.fails = second.fails = lambda _: True
            second.open.set()
            until(lambda: observed.batcher.failure is not None)
            assert not observed.batcher.alive and observed.batcher.busy_for > 0
            with pytest.raises(ServiceError) as lost:
                await queued
            assert lost.value.code == Code.ENGINE_FAILED
            first.fails = lambda _: False
            first.open.set()
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
            assert [isinstance(outcome, ServiceError) for outcome in outcomes].count(True) == 1

    asyncio.run(scenario())


def test_a_server_on_two_devices_has_the_results_and_metrics_of_one(folder: Path) -> None:
    images = [encoded(picture(seed)) for seed in range(6)]
    found = []
    for device in ("cpu", "cpu,cpu"):
        settings = Settings(
            model_repository=folder,
            device=device,
            engine="torch",
            routing="branch",
            max_batch_size=2,
            threads=1,
            dense_sample_interval=0,
        )
        server = Running(settings).wait_ready()
        try:
            bodies = [post(server, image).json() for image in images]
            assert {body["model"]["device"] for body in bodies} == {device}
            assert server.metric("model_info", device=device) == 1
            assert server.metric("engine_threads") == len(device.split(","))
            counts = [server.metric(name) for name in ("batches_total", "macs_total", "block_skips_total")]
            assert all(counts)
            found.append(([(body["predictions"], body["routing"]) for body in bodies], counts))
            if device != "cpu":
                write_random(folder / NAME / "2", seed=1)
                assert server.client.post(f"/v2/repository/models/{NAME}/load", json={}).status_code == 200
                assert post(server, images[0]).json()["model"]["version"] == 2
        finally:
            server.stop()
    assert found[0] == found[1]


def test_devices_are_named_by_one_option() -> None:
    assert find_devices("cpu,cpu", "auto") == ["cpu", "cpu"]
    assert find_devices("all", "native") == ["cpu"]
    # Resolved when an engine is selected, which can fall back from a GPU to the CPU.
    assert find_devices("auto", "auto") == ["auto"]
