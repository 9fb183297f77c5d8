"""POST /classify over a real socket."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest

from models.preprocessing import prepare
from service.repository.loaded_model import LoadedModel
from tests.service.parts import LABELS, NAME, PNG, SPEC, Running, encoded, engine_of, error_of, picture, post, until

JPEG = {"content-type": "image/jpeg"}


def test_the_response_equals_the_output_of_the_engine(running: Running, loaded: LoadedModel) -> None:
    image = picture(0)
    body = post(running, encoded(image), "?explain=true&top_k=10").json()
    threshold = loaded.checkpoint.config.execute_threshold
    routed = loaded.engine.run(prepare(image, SPEC)[None], np.asarray([threshold], np.float32))
    powers = np.exp(routed.logits[0] - routed.logits[0].max())
    probabilities = powers / powers.sum()

    assert body["model"] == {"name": NAME, "version": 1, "engine": "torch", "device": "cpu"}
    indices = [each["index"] for each in body["predictions"]]
    assert indices == np.argsort(-probabilities).tolist()
    for each in body["predictions"]:
        assert each["label"] == LABELS[each["index"]]
        assert each["probability"] == pytest.approx(probabilities[each["index"]], abs=1e-5)

    routing, executed = body["routing"], routed.executed[0]
    assert [each["block"] for each in routing["decisions"]] == list(range(1, 18))
    assert [each["executed"] for each in routing["decisions"]] == executed.tolist()
    np.testing.assert_allclose([each["probability"] for each in routing["decisions"]], routed.probability[0], atol=1e-5)
    skipped = int((~executed).sum())
    assert 0 < skipped < 17
    assert routing["blocks"] == 18
    assert routing["skipped"] == skipped
    assert routing["executed"] == 18 - skipped
    assert routing["layers_skipped"] == 2 * skipped
    assert routing["macs"] == loaded.checkpoint.macs.executed(routed.executed)[0]
    assert routing["dense_macs"] == loaded.checkpoint.macs.dense
    assert routing["saved"] == pytest.approx(1 - routing["macs"] / routing["dense_macs"], abs=1e-6)
    assert routing["mode"] == "branch"


def test_shape_of_the_response(running: Running) -> None:
    body = post(running, encoded(picture(0))).json()
    assert body.keys() == {"request_id", "model", "predictions", "routing", "timing_ms"}
    assert len(body["predictions"]) == 5
    assert body["predictions"][0].keys() == {"label", "index", "probability"}
    assert body["routing"].keys() == {
        *("blocks", "executed", "skipped", "layers_skipped", "macs", "dense_macs", "saved", "mode")
    }
    assert body["timing_ms"].keys() == {"decode", "queue", "inference", "total"}


def test_skipped_blocks_vary_from_image_to_image(running: Running) -> None:
    assert len({post(running, encoded(picture(i))).json()["routing"]["skipped"] for i in range(12)}) > 1


def test_thresholds_0_and_1(running: Running) -> None:
    data = encoded(picture(0))
    every, none = (post(running, data, f"?execute_threshold={t}").json()["routing"] for t in (0, 1))
    assert (every["executed"], every["skipped"]) == (18, 0)
    assert (none["executed"], none["skipped"]) == (1, 17)
    assert every["saved"] < 0.001
    assert none["saved"] > 0.9


@pytest.mark.parametrize("top_k", [1, 3, 10, 1000])
def test_top_k(running: Running, top_k: int) -> None:
    found = post(running, encoded(picture(0)), f"?top_k={top_k}").json()["predictions"]
    assert len(found) == min(top_k, 10)
    assert [each["probability"] for each in found] == sorted((p["probability"] for p in found), reverse=True)


def test_model_and_version_by_name(running: Running) -> None:
    assert post(running, encoded(picture(0)), f"?model={NAME}&version=1").status_code == 200


def test_request_id_is_kept_or_made(running: Running) -> None:
    mine = post(running, encoded(picture(0)), headers=PNG | {"x-request-id": "trace-7.1"})
    assert mine.headers["x-request-id"] == mine.json()["request_id"] == "trace-7.1"
    made = {post(running, encoded(picture(0))).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize("given", ["a b", "x" * 65, 'quo"te', "né", "-dash", "{}"])
def test_an_unusual_request_id_is_replaced(running: Running, given: str) -> None:
    headers = httpx.Headers(PNG | {"x-request-id": given}, encoding="utf-8")
    response = running.client.post("/classify", content=encoded(picture(0)), headers=headers)
    assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])


def test_errors_have_a_request_id_too(running: Running) -> None:
    for response in (post(running, b""), running.client.get("/nowhere")):
        assert response.headers["x-request-id"]


def test_response_and_headers_have_the_same_timing(running: Running) -> None:
    response = post(running, encoded(picture(0)))
    timing = response.json()["timing_ms"]
    entries = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    assert entries.keys() == {"receive", "decode", "queue", "inference", "total"}
    for stage, value in timing.items():
        assert float(entries[stage]) == float(response.headers[f"x-{stage}-time"]) == pytest.approx(value, abs=1e-3)
    assert response.headers["x-batch-size"] == "1"
    parts = sum(float(value) for stage, value in entries.items() if stage != "total")
    assert 0 < parts <= timing["total"] + 0.01


def test_concurrent_requests_share_batches_and_get_their_own_results(
    start: Callable[..., Running], model: LoadedModel
) -> None:
    server = start()
    alone = [post(server, encoded(picture(i))).json() for i in range(8)]
    engine_of(model).open.clear()
    thresholds = ["", "&execute_threshold=0", "&execute_threshold=1"]
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(post, server, encoded(picture(9)))
        until(lambda: server.container.pipeline.batcher.busy_for > 0)
        responses = [pool.submit(post, server, encoded(picture(i)), "?top_k=5" + thresholds[i % 3]) for i in range(8)]
        until(lambda: server.container.pipeline.batcher.depth(model) == 8)
        engine_of(model).open.set()
        assert first.result().status_code == 200
        for i, body in enumerate(each.result().json() for each in responses):
            if i % 3 == 0:
                assert [p["index"] for p in body["predictions"]] == [p["index"] for p in alone[i]["predictions"]]
                assert body["routing"]["skipped"] == alone[i]["routing"]["skipped"]
            else:
                assert body["routing"]["skipped"] == (0 if i % 3 == 1 else 17)
    assert responses[0].result().headers["x-batch-size"] == "8"


def test_bad_images_do_not_affect_other_images(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start()
    engine_of(model).open.clear()
    with ThreadPoolExecutor(7) as pool:
        first = pool.submit(post, server, encoded(picture(9)))
        until(lambda: server.container.pipeline.batcher.busy_for > 0)
        good = [pool.submit(post, server, encoded(picture(i))) for i in range(3)]
        bad = [pool.submit(post, server, encoded(picture(i))[:-30]) for i in range(3)]
        assert [each.result().status_code for each in bad] == [400] * 3
        engine_of(model).open.set()
        assert [each.result().status_code for each in [first, *good]] == [200] * 4


def test_engine_error_is_a_500_for_the_one_image(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start()
    poison = prepare(picture(1), SPEC)
    engine_of(model).fails = lambda images: bool((images == poison).all((1, 2, 3)).any())
    response = post(server, encoded(picture(1)))
    assert (response.status_code, error_of(response)) == (500, "engine_failed")
    assert post(server, encoded(picture(0))).status_code == 200
    assert server.client.get("/health/ready").status_code == 200


def test_bug_in_the_service_is_a_500_with_the_request_id(
    start: Callable[..., Running], model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    monkeypatch.setattr(server.container.metrics, "observe_request", lambda *_: 1 / 0)
    response = post(server, encoded(picture(0)), headers=PNG | {"x-request-id": "find-me"})
    assert (response.status_code, error_of(response)) == (500, "internal")
    assert "find-me" in response.text
    assert server.container.admission.image_count == 0
    assert model.leases == 0


def test_mode_mask_counts_every_block(start: Callable[..., Running], model: LoadedModel) -> None:
    engine = engine_of(model)
    run = engine.run
    engine.run = lambda *batch: replace(run(*batch), mode="mask")  # type: ignore[method-assign]
    server = start()
    routing = post(server, encoded(picture(0))).json()["routing"]
    assert routing["mode"] == "mask"
    assert routing["skipped"] > 0
    assert routing["macs"] >= routing["dense_macs"]
    assert server.metric("engine_mode", mode="mask") == 1
    assert server.metric("engine_mode", mode="branch") == 0


def test_many_requests_at_once_are_all_counted(running: Running) -> None:
    before = running.metric("requests_total")
    images = [encoded(picture(i)) for i in range(10)]
    gate = threading.Barrier(10)

    def send(i: int) -> list[int]:
        with httpx.Client(base_url=running.url, timeout=20) as client:
            gate.wait(20)
            return [client.post("/classify", content=images[i], headers=PNG).status_code for _ in range(10)]

    with ThreadPoolExecutor(10) as pool:
        assert [status for each in pool.map(send, range(10)) for status in each] == [200] * 100
    until(lambda: running.metric("requests_total") == before + 100)
