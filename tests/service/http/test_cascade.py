"""A cascade behind a real socket, compared with its two stages run separately."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.cascade.confidence import confidence, probabilities
from models.cascade.config import CascadeConfig, CascadeEvaluation, CascadePoint, Stage, write_cascade_config
from service.settings import Settings
from tests.service.parts import LABELS, PNG, SPEC, Running, encoded, picture, until, write_random

FIRST, LAST, CASCADE = "cifar10_rnn_gate_38", "cifar10_resnet_38", "cascade"
MINE = {"model": CASCADE, "version": "1"}
IMAGES = 12
FLAT = 40.0
"""A temperature for random weights, whose logits are large. Without it every image would have the confidence 1."""


def write_cascade(repository: Path, version: int, margin: float) -> None:
    point = CascadePoint(thresholds=(1, 0.5), margins=(0.0,), accuracy=0.7, mac_share=0.2, escalated=(0.0,))
    better = CascadePoint(thresholds=(0.5, 0.5), margins=(1.0,), accuracy=0.8, mac_share=0.9, escalated=(0.99,))
    evaluation = CascadeEvaluation(
        dataset="cifar10",
        split="test",
        images=10,
        engine="reference",
        accuracy=0.75,
        macs=5e7,
        dense_macs=100_000_000,
        escalated=(0.1,),
        accuracy_per_class={},
    )
    config = CascadeConfig(
        stages=(
            Stage(model=FIRST, version=1, execute_threshold=0.5, temperature=FLAT, margin=margin),
            Stage(model=LAST, version=1, execute_threshold=0.5, temperature=FLAT),
        ),
        labels=LABELS,
        input=SPEC,
        curve=[point, better],
        evaluation=evaluation,
        code="test",
    )
    write_cascade_config(repository / CASCADE / str(version), config)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for number, name in enumerate((FIRST, LAST)):
        write_random(folder / name / "1", number, name)
    write_cascade(folder, 1, 0.05)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Running]:
    running = Running(
        Settings(model_repository=repository, engine="torch", threads=1, max_batch_size=4, dense_sample_interval=0)
    ).wait_ready()
    yield running
    running.stop()


def classify(server: Running, seed: int, query: str) -> dict[str, Any]:
    response = server.client.post(f"/classify?{query}", content=encoded(picture(seed)), headers=PNG)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def logits(server: Running, model: str, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a stage's logits [1, 10] of an image by /v2."""
    tensor = {
        "name": "bytes",
        "datatype": "BYTES",
        "shape": [1],
        "data": [base64.b64encode(encoded(picture(seed))).decode()],
    }
    body = {"inputs": [tensor], "outputs": [{"name": "logits"}], "parameters": {"execute_threshold": 0.5}}
    if model == LAST:
        del body["parameters"]
    response = server.client.post(f"/v2/models/{model}/infer", json=body)
    assert response.status_code == 200, response.text
    return np.asarray([response.json()["outputs"][0]["data"]], np.float32)


def test_predictions_macs_and_metrics_are_those_of_the_stages(server: Running) -> None:
    first = [classify(server, seed, f"model={FIRST}&execute_threshold=0.5") for seed in range(IMAGES)]
    last = [classify(server, seed, f"model={LAST}") for seed in range(IMAGES)]
    shares = [
        (probabilities(logits(server, FIRST, seed), FLAT), probabilities(logits(server, LAST, seed), FLAT))
        for seed in range(IMAGES)
    ]
    sure = [float(confidence(one)[0]) for one, _ in shares]
    # Half of the images are escalated with any random weights.
    margin = float(np.sort(sure)[IMAGES // 2 - 1 : IMAGES // 2 + 1].mean())
    found = [classify(server, seed, f"model={CASCADE}&min_margin={margin}") for seed in range(IMAGES)]
    for seed, result in enumerate(found):
        escalates = sure[seed] < margin
        routing, stages = result["routing"], result["routing"]["stages"]
        assert routing["escalated"] is escalates
        assert [stage["model"] for stage in stages] == ([FIRST, LAST] if escalates else [FIRST])
        assert stages[0]["margin"] == pytest.approx(sure[seed], abs=1e-5)
        alone = [first[seed]["routing"], last[seed]["routing"]][: len(stages)]
        for key in ("macs", "executed", "skipped", "blocks", "layers_skipped"):
            assert routing[key] == sum(each[key] for each in alone), key
        assert [stage["macs"] for stage in stages] == [each["macs"] for each in alone]
        assert routing["dense_macs"] == last[seed]["routing"]["dense_macs"]
        expected = (shares[seed][0] + shares[seed][1])[0] / 2 if escalates else shares[seed][0][0]
        best = result["predictions"][0]
        assert best["index"] == int(expected.argmax())
        assert best["probability"] == pytest.approx(float(expected.max()), abs=1e-4)
    escalated = sum(len(result["routing"]["stages"]) - 1 for result in found)
    assert escalated == IMAGES // 2
    until(lambda: server.metric("cascade_images_total", stage="0", **MINE) == IMAGES)
    assert server.metric("cascade_images_total", stage="1", **MINE) == escalated
    assert server.metric("cascade_margin_count", stage="0", **MINE) == IMAGES
    for stage in (0, 1):
        macs = sum(a["routing"]["stages"][stage]["macs"] for a in found if len(a["routing"]["stages"]) > stage)
        assert server.metric("cascade_macs_total", stage=str(stage), **MINE) == macs
    assert server.metric("macs_total", kind="executed", **MINE) == sum(a["routing"]["macs"] for a in found)
    assert server.metric("block_executions_total", block="18", **MINE) == escalated
    assert server.metric("block_skips_total", block="20", **MINE) == 0, "the dense stage skips nothing"
    assert server.metric("cascade_request_duration_seconds_count", escalated="true", **MINE) == escalated
    assert server.metric("cascade_expected_escalation_rate", stage="1", **MINE) == 0.1


def test_a_budget_moves_along_the_curve(server: Running) -> None:
    cheap = classify(server, 0, f"model={CASCADE}&compute_budget=0.5")
    assert cheap["expected_accuracy"] == 0.7
    assert cheap["routing"]["escalated"] is False and cheap["routing"]["executed"] == 1
    dear = classify(server, 0, f"model={CASCADE}&compute_budget=1")
    assert dear["expected_accuracy"] == 0.8 and dear["routing"]["escalated"] is True
    refused = server.client.post(f"/classify?model={CASCADE}&compute_budget=0.1", content=b"x", headers=PNG)
    assert refused.status_code == 422 and "the least is 0.2" in refused.json()["error"]["message"]


def test_min_margin_is_for_cascades(server: Running) -> None:
    refused = server.client.post(f"/classify?model={FIRST}&min_margin=0.5", content=b"x", headers=PNG)
    assert refused.status_code == 422 and "is not a cascade" in refused.json()["error"]["message"]


def test_v2_tells_how_many_stages_ran(server: Running) -> None:
    files = [base64.b64encode(encoded(picture(seed))).decode() for seed in range(IMAGES)]
    tensor = {"name": "bytes", "datatype": "BYTES", "shape": [IMAGES], "data": files}
    sure = confidence(probabilities(np.concatenate([logits(server, FIRST, seed) for seed in range(IMAGES)]), FLAT))
    margin = float(np.sort(sure)[IMAGES // 2 - 1 : IMAGES // 2 + 1].mean())

    def infer(model: str, **parameters: float) -> dict[str, Any]:
        body = {"inputs": [tensor], "parameters": parameters}
        response = server.client.post(f"/v2/models/{model}/infer", json=body)
        assert response.status_code == 200, response.text
        return {output["name"]: output for output in response.json()["outputs"]}

    found = infer(CASCADE, min_margin=margin)["stages"]
    assert (found["datatype"], found["shape"]) == ("INT64", [IMAGES])
    assert found["data"] == [2 if each < margin else 1 for each in sure]
    assert "stages" not in infer(FIRST)


def test_v2_lists_stages_for_cascades_only(server: Running) -> None:
    def listed(model: str) -> list[Any]:
        metadata = server.client.get(f"/v2/models/{model}").json()["outputs"]
        config = server.client.get(f"/v2/models/{model}/config").json()["output"]
        return [each for each in (*metadata, *config) if each["name"] == "stages"]

    assert listed(CASCADE) == [
        {"name": "stages", "datatype": "INT64", "shape": [-1]},
        {"name": "stages", "data_type": "TYPE_INT64", "dims": [1]},
    ]
    assert listed(FIRST) == []
    assert listed(f"{CASCADE}@image") == []
    tensor = {"name": "bytes", "datatype": "BYTES", "shape": [1], "data": [""]}
    body = {"inputs": [tensor], "outputs": [{"name": "stages"}]}
    refused = server.client.post(f"/v2/models/{FIRST}/infer", json=body)
    assert refused.status_code == 400 and "unknown output 'stages'" in refused.json()["error"]


def test_explain_lists_the_blocks_of_the_stages_that_ran(server: Running) -> None:
    one = classify(server, 1, f"model={CASCADE}&min_margin=0&explain=true")["routing"]
    assert [each["block"] for each in one["decisions"]] == list(range(1, 18))
    both = classify(server, 1, f"model={CASCADE}&min_margin=1&explain=true")["routing"]
    assert [each["block"] for each in both["decisions"]] == list(range(1, 36))


def test_the_cascade_is_the_default(server: Running) -> None:
    assert classify(server, 2, "")["model"]["name"] == CASCADE


@pytest.mark.parametrize("stage", [FIRST, LAST])
def test_an_older_version_is_served_if_a_stage_is_damaged(repository: Path, tmp_path: Path, stage: str) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(repository, folder)
    running = Running(
        Settings(model_repository=folder, engine="torch", threads=1, max_batch_size=2, watch_interval=0)
    ).wait_ready()
    try:
        (folder / stage / "1" / "model.safetensors").write_bytes(b"damaged")
        write_cascade(folder, 2, 0.5)
        refused = running.client.post(f"/v2/repository/models/{CASCADE}/load", timeout=60)
        assert refused.status_code >= 400 and f"{stage} version 1" in refused.text
        assert classify(running, 0, f"model={CASCADE}")["model"]["version"] == 1
    finally:
        running.stop()
