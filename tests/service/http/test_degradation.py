"""Degraded routes over a real socket. The engine is held, so that images wait for it."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from models.checkpoint import CalibrationPoint
from service.repository.loaded_model import LoadedModel
from tests.service.parts import NAME, PNG, Running, encoded, engine_of, picture, until

IMAGE = encoded(picture(0))
CURVE = [(0.0, 1.0, 0.9), (0.5, 0.6, 0.89), (0.75, 0.4, 0.885), (0.9999, 0.31, 0.88), (1.0, 0.1, 0.2)]


@pytest.fixture
def model(model: LoadedModel) -> LoadedModel:
    """The loaded model with an accuracy-compute curve, on which its usual threshold costs 0.6 of the dense MACs."""
    points = [
        CalibrationPoint(threshold=threshold, accuracy=accuracy, computation_percentage=50, mac_share=share)
        for threshold, share, accuracy in CURVE
    ]
    config = model.checkpoint.config.model_copy(update={"calibration": points, "execute_threshold": 0.5})
    model.checkpoint = replace(model.checkpoint, config=config)
    return model


@pytest.fixture
def senders() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool


def classify(server: Running, query: str = "", **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/classify{query}", content=IMAGE, headers=PNG | headers, timeout=20)


def press(server: Running, model: LoadedModel, senders: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
    """Hold the engine and send images until the routes are as cheap as the settings allow, or the queue is full."""
    engine_of(model).open.clear()
    sent: list[Future[httpx.Response]] = []

    def full() -> bool:
        if len(sent) < 48:
            sent.append(senders.submit(classify, server))
        return len(sent) == 48 and server.container.admission.image_count == 48

    until(full)
    if server.container.settings.degrade_to is not None:
        until(lambda: server.metric("usual_macs_share") == server.container.settings.degrade_to)
    return sent


def test_images_get_cheaper_routes_while_others_wait_for_the_engine(
    start: Callable[..., Running], model: LoadedModel, senders: ThreadPoolExecutor
) -> None:
    server = start(degrade_to=0.5, max_batch_size=8)
    assert server.metric("usual_macs_share") == 1
    usual = classify(server).json()
    assert usual.keys().isdisjoint({"degraded", "expected_accuracy", "expected_accuracy_loss"})
    waiting = press(server, model, senders)
    degraded = senders.submit(classify, server)
    tensors = {"inputs": [{"name": "bytes", "datatype": "BYTES", "shape": [1], "data": [b64encode(IMAGE).decode()]}]}
    by_v2 = senders.submit(httpx.post, f"{server.url}/v2/models/{NAME}/infer", json=tensors, timeout=20)
    own = [
        senders.submit(classify, server, query, **headers)
        for query, headers in (
            ("?execute_threshold=0.5", {}),
            ("?compute_budget=0.6", {}),
            ("", {"X-Degrade": "false"}),
        )
    ]
    until(lambda: server.container.pipeline.batcher.waiting >= 48 + 5 - 8)
    engine_of(model).open.set()

    assert {each.result().status_code for each in waiting} == {200}
    response = degraded.result().json()
    assert response["degraded"] is True
    assert (response["expected_accuracy"], response["expected_accuracy_loss"]) == (0.88, 0.01)
    assert response["routing"]["macs"] < usual["routing"]["macs"]
    assert by_v2.result().json()["parameters"] == {"degraded": True, "expected_accuracy_loss": 0.01}
    for each in own:
        assert "degraded" not in each.result().json()
        assert each.result().json()["routing"]["macs"] == usual["routing"]["macs"]

    images = [each.result().json() for each in waiting] + [response]
    expected = sum("degraded" in each for each in images) + 1
    assert server.metric("degraded_images_total", model=NAME) == expected
    losses = sum(each.get("expected_accuracy_loss", 0) for each in images) + 0.01
    assert server.metric("degraded_accuracy_loss_total", model=NAME) == pytest.approx(losses)


def test_by_default_routes_do_not_change(
    start: Callable[..., Running], model: LoadedModel, senders: ThreadPoolExecutor
) -> None:
    server = start(max_batch_size=8)
    waiting = press(server, model, senders)
    engine_of(model).open.set()
    assert not any("degraded" in each.result().json() for each in waiting)
    assert server.metric("usual_macs_share") == 1


def test_a_model_without_a_curve_keeps_its_route(
    start: Callable[..., Running], model: LoadedModel, senders: ThreadPoolExecutor
) -> None:
    config = model.checkpoint.config.model_copy(update={"calibration": []})
    model.checkpoint = replace(model.checkpoint, config=config)
    server = start(degrade_to=0.5, max_batch_size=8)
    waiting = press(server, model, senders)
    engine_of(model).open.set()
    assert not any("degraded" in each.result().json() for each in waiting)
