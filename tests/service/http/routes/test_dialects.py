"""Other services' shapes over a real socket, with Hugging Face's client."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from pydantic import ValidationError

from models.errors import UserError
from models.remote.files import remote_url
from service.app import create_app
from service.http.routes import vertex
from service.repository.loaded_model import LoadedModel
from service.settings import Settings
from tests.ports import free_port
from tests.service.parts import LABELS, NAME, PNG, Process, Running, encoded, engine_of, picture, post, until

IMAGE = encoded(picture(0))
B64 = base64.b64encode(IMAGE).decode()
PATHS = ("/", "/predict", "/invocations", "/vertex/predict")


@pytest.fixture(scope="module")
def server(repository: Path, loaded: LoadedModel) -> Iterator[Running]:
    settings = Settings(
        model_repository=repository,
        max_batch_size=8,
        dense_sample_interval=0,
        dialects=["huggingface", "vertex", "sagemaker"],
    )
    running = Running(settings, lambda _: replace(loaded)).wait_ready()
    yield running
    running.stop()


@pytest.fixture
def best(server: Running) -> list[tuple[str, Any]]:
    """Labels and probabilities of IMAGE by /classify, most probable first."""
    result = post(server, IMAGE, "?top_k=10").json()["predictions"]
    return [(each["label"], pytest.approx(each["probability"], abs=1e-5)) for each in result]


@pytest.mark.parametrize("path", ["", "/", "/predict", "/invocations"])
def test_hugging_faces_client_classifies_an_image(server: Running, best: list[Any], path: str, tmp_path: Path) -> None:
    client = InferenceClient(model=server.url + path)
    (tmp_path / "image.png").write_bytes(IMAGE)
    for image in (IMAGE, tmp_path / "image.png", str(tmp_path / "image.png")):
        scores = client.image_classification(image)
        assert [(each.label, each.score) for each in scores] == best[:5]


def test_parameters_of_hugging_faces_client(server: Running, best: list[Any], logits: NDArray[np.float64]) -> None:
    client = InferenceClient(model=server.url)
    assert [(each.label, each.score) for each in client.image_classification(IMAGE, top_k=2)] == best[:2]
    expected = {"none": logits, "sigmoid": 1 / (1 + np.exp(-logits))}
    for function, scores in expected.items():
        found = client.image_classification(IMAGE, top_k=10, function_to_apply=function)  # type: ignore[arg-type]
        assert [each.label for each in found] == [label for label, _ in best]
        np.testing.assert_allclose([each.score for each in found], np.sort(scores)[::-1], atol=1e-4)


@pytest.fixture
def logits(server: Running) -> NDArray[np.float64]:
    tensor = {"name": "bytes", "datatype": "BYTES", "shape": [1], "data": [B64]}
    body = {"inputs": [tensor], "outputs": [{"name": "logits"}]}
    result = server.client.post(f"/v2/models/{NAME}/infer", json=body).json()
    return np.asarray(result["outputs"][0]["data"])


@pytest.mark.parametrize(
    "instance", [B64, {"b64": B64}, {"content": B64}, {"image_bytes": {"b64": B64}}, f"data:image/png;base64,{B64}"]
)
def test_vertex_ais_instances(server: Running, best: list[Any], instance: Any) -> None:
    other = base64.b64encode(encoded(picture(1))).decode()
    body = {"instances": [instance, {"b64": other}], "parameters": {"maxPredictions": 3}}
    first, second = server.client.post("/vertex/predict", json=body).json()["predictions"]
    assert list(zip(first["displayNames"], first["confidences"], strict=True)) == best[:3]
    assert [LABELS[int(index)] for index in first["ids"]] == first["displayNames"]
    assert second["confidences"] != first["confidences"]


def test_execute_threshold_and_model_can_be_chosen(server: Running, loaded: LoadedModel) -> None:
    counted = server.metric("macs_total", kind="executed")
    body = {"inputs": B64, "parameters": {"execute_threshold": 0}}
    result = server.client.post(f"/?model={NAME}&version=1", json=body)
    assert result.status_code == 200
    until(lambda: server.metric("macs_total", kind="executed") == counted + loaded.checkpoint.macs.full)
    assert server.client.post("/?model=unknown", content=IMAGE).status_code == 404
    assert server.client.post("/?modell=unknown", content=IMAGE).status_code == 422


@pytest.mark.parametrize("path", ["/health", "/ping", "/vertex/health"])
def test_probes(server: Running, path: str) -> None:
    assert server.client.get(path).status_code == 200
    server.container.health.draining = True
    try:
        response = server.client.get(path)
        assert (response.status_code, response.json()) == (503, {"error": "draining"})
    finally:
        server.container.health.draining = False


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (json.dumps({"inputs": "?"}).encode(), "application/json", 400),
        (json.dumps({"inputs": "http://localhost/cat.png", "instances": []}).encode(), "application/json", 400),
        (json.dumps({"inputs": "", "instances": [""]}).encode(), "application/json", 400),
        (json.dumps({"inputs": "AAAA", "instances": ["AAAA"]}).encode(), "application/json", 415),
        (json.dumps({"x": "y" * (5 << 20)}).encode(), "application/json", 413),
    ],
)
def test_bad_requests_get_a_message(server: Running, path: str, body: bytes, kind: str, status: int) -> None:
    before = server.metric("requests_total", outcome="bad_input")
    response = server.client.post(path, content=body, headers={"content-type": kind})
    assert response.status_code == status
    assert isinstance(response.json()["error"], str)
    until(lambda: server.metric("requests_total", outcome="bad_input") == before + 1)


@pytest.mark.parametrize("kind", ["", "image/png", "application/x-image", "application/octet-stream"])
def test_an_image_may_have_any_content_type(server: Running, kind: str) -> None:
    assert server.client.post("/invocations", content=IMAGE, headers={"content-type": kind}).status_code == 200
    refused = server.client.post("/invocations", files={"image": IMAGE})
    assert refused.status_code == 415


def test_more_instances_than_can_be_admitted_are_refused(start: Callable[..., Running]) -> None:
    server = start(dialects=["vertex"], max_queue_size=2)
    statuses = [server.client.post("/vertex/predict", json={"instances": [B64] * n}).status_code for n in (2, 3)]
    assert statuses == [200, 422]


def test_limits_and_metrics_are_those_of_classify(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start(dialects=["huggingface"], api_keys=["key"], max_queue_size=1)
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(model=server.url).image_classification(IMAGE)
    assert len(InferenceClient(model=server.url, token="key").image_classification(IMAGE)) == 5
    engine_of(model).open.clear()
    headers = {"authorization": "Bearer key", "x-request-timeout": "0.1"}
    late = server.client.post("/", content=IMAGE, headers=headers)
    assert late.status_code == 504
    outcomes = {"ok": 1, "bad_input": 1, "client_deadline": 1}
    until(lambda: {outcome: server.metric("requests_total", outcome=outcome) for outcome in outcomes} == outcomes)
    assert server.metric("request_duration_seconds_count") == 1


def test_dialects_are_off_by_default(running: Running) -> None:
    assert [running.client.post(path, content=IMAGE, headers=PNG).status_code for path in PATHS] == [405, 404, 404, 404]
    assert [running.client.get(path).status_code for path in ("/health", "/ping", "/vertex/health")] == [404] * 3


def test_the_page_and_the_openapi_document_are_still_served(server: Running) -> None:
    assert server.client.get("/").headers["content-type"].startswith("text/html")
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {"/", "/invocations", "/vertex/predict"} <= paths.keys()
    titles = [operation["summary"] for path in paths.values() for operation in path.values()]
    assert len(titles) == len(set(titles))


def test_two_dialects_at_one_path_are_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = replace_path(vertex.router, "/predict")
    monkeypatch.setattr(vertex, "router", router)
    settings = Settings(model_repository=repository, dialects=["huggingface", "vertex"])
    with pytest.raises(UserError, match="huggingface and vertex both serve POST /predict: set another path by AIP_"):
        create_app(settings)


def replace_path(router: Any, path: str) -> Any:
    copy = type(router)()
    copy.add_api_route(path, vertex.predict, methods=["POST"])
    return copy


def test_variables_of_vertex_ai(launch: Callable[..., Process], repository: Path) -> None:
    port = free_port()
    serve = launch(
        *("--dialects", "huggingface,vertex", "--engine", "torch", "--threads", "1", "--max-batch-size", "1"),
        SKIPNET_MODEL_REPOSITORY=str(repository),
        AIP_HTTP_PORT=str(port),
        AIP_PREDICT_ROUTE="/v1/endpoints/7/deployedModels/8:predict",
        AIP_HEALTH_ROUTE="/v1/endpoints/7/deployedModels/8",
    )
    url = serve.url()
    assert url == f"http://127.0.0.1:{port}"
    until(lambda: httpx.get(f"{url}/v1/endpoints/7/deployedModels/8").status_code == 200, 120)
    result = httpx.post(f"{url}/v1/endpoints/7/deployedModels/8:predict", json={"instances": [{"b64": B64}]})
    assert result.json()["predictions"][0]["displayNames"]


def test_ports_of_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(dialects=["sagemaker"]).port == 8080
    assert Settings(dialects=["sagemaker"], port=7).port == 7
    monkeypatch.setenv("SKIPNET_DIALECTS", "vertex, sagemaker")
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "9090")
    assert Settings().port == 9090
    monkeypatch.setenv("AIP_HTTP_PORT", "8181")
    monkeypatch.setenv("AIP_STORAGE_URI", "gs://bucket/models")
    assert Settings().port == 8181
    assert remote_url(Settings().model_repository) == "gs://bucket/models"
    monkeypatch.setenv("AIP_HTTP_PORT", "x")
    with pytest.raises(ValidationError, match="AIP_HTTP_PORT must be a port, not 'x'"):
        Settings()
