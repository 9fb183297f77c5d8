"""A shadow classifies images again, after their responses and only while the engine is idle."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from shutil import copytree

import numpy as np
import pytest

from service.repository.loaded_model import LoadedModel
from service.rollout.shadow import MAX_WAITING
from service.settings import Settings
from tests.service.parts import NAME, Running, encoded, engine_of, picture, post, until

DENSE = f"{NAME}=dense:1"


def counted(server: Running, outcome: str, **labels: str) -> int:
    return int(server.metric("shadow_images_total", model=NAME, outcome=outcome, **labels))


def test_every_block_is_compared_with_the_usual_route(start: Callable[..., Running]) -> None:
    server = start(shadow=DENSE)
    images = [encoded(picture(seed)) for seed in range(12)]
    usual = [post(server, image).json() for image in images]
    # A request that sets a threshold is not compared.
    dense = [post(server, image, "?execute_threshold=0").json() for image in images]
    labels = [[each["predictions"][0]["label"] for each in answers] for answers in (usual, dense)]
    agreeing = sum(one == other for one, other in zip(*labels, strict=True))
    assert 0 < agreeing < 12
    until(lambda: sum(counted(server, outcome) for outcome in ("agreed", "differed")) == 12)
    assert counted(server, "agreed", shadow="dense", version="1") == agreeing
    assert server.metric("shadow_engine_seconds_total") > 0
    # The blocks of the shadow count neither as executed nor as skipped.
    macs = sum(each["routing"]["macs"] for each in (*usual, *dense))
    assert server.metric("macs_total", kind="executed") == macs
    assert server.metric("batch_size_count") == 24


def test_images_that_wait_go_first_and_samples_beyond_the_limit_are_dropped(
    start: Callable[..., Running], model: LoadedModel
) -> None:
    server = start(shadow=DENSE, max_batch_size=8)
    engine = engine_of(model)
    engine.open.clear()
    with ThreadPoolExecutor(41) as pool:
        first = pool.submit(post, server, encoded(picture(0)))
        engine.entered.get(timeout=20)
        others = [pool.submit(post, server, encoded(picture(0))) for _ in range(40)]
        until(lambda: server.container.pipeline.batcher.waiting == 40)
        engine.open.set()
        assert {each.result().status_code for each in (first, *others)} == {200}
    until(lambda: sum(counted(server, outcome) for outcome in ("agreed", "differed")) == MAX_WAITING)
    assert counted(server, "dropped") == 41 - MAX_WAITING
    assert [len(batch) for batch in engine.batches] == [1, *[8] * 5, *[1] * MAX_WAITING]
    assert [float(batch.max()) for batch in engine.batches[6:]] == [0.0] * MAX_WAITING


def test_a_shadow_that_fails_changes_no_response(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start(shadow=DENSE)
    engine = engine_of(model)
    engine.fails = lambda _: not engine.batches[-1].any()
    for _ in range(2):
        assert post(server, encoded(picture(0))).status_code == 200
    until(lambda: counted(server, "failed") == 2)
    assert server.client.get("/health/live").status_code == 200


def test_another_version_is_compared_until_it_is_unloaded(shelf: Callable[..., Running]) -> None:
    server = shelf(shadow=f"{NAME}=1:1", watch_interval=0.01)
    folder = server.container.settings.model_repository
    copytree(folder / NAME / "1", folder / NAME / ".2")
    (folder / NAME / ".2").rename(folder / NAME / "2")
    until(lambda: server.client.get(f"/v2/models/{NAME}/versions/2/ready").status_code == 200)
    for version in (None, None, 1):
        query = "" if version is None else f"?version={version}"
        assert post(server, encoded(picture(0)), query).json()["model"]["version"] == (version or 2)
    until(lambda: counted(server, "agreed", version="2", shadow="1") == 2)
    assert server.client.post(f"/v2/repository/models/{NAME}/unload", json={"parameters": {"version": 1}}).is_success
    post(server, encoded(picture(0)))
    until(lambda: counted(server, "dropped", version="2", shadow="1") == 1)
    assert counted(server, "agreed") == 2


def test_a_share_of_the_images_is_sampled(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start(shadow=f"{NAME}=dense:0.5")
    for _ in range(40):
        post(server, encoded(picture(0)))
    until(lambda: server.container.shadow.waiting == 0)
    until(lambda: not server.container.pipeline.batcher.busy_for)
    sampled = sum(1 for batch in engine_of(model).batches if not np.any(batch))
    assert 5 < sampled < 35


@pytest.mark.parametrize("wrong", ["x=7", "x=sparse:0.1", "x=dense:1.5"])
def test_a_malformed_share_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="shadow"):
        Settings(shadow=[wrong])
