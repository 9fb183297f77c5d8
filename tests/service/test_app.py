"""The application's page, OpenAPI document, list of models, and errors."""

import re
from typing import Any

import pytest

from models.images.encoded import FORMATS
from service.errors import STATUS, Code, outcome_of
from service.inference.result import Classification
from tests.service.parts import LABELS, NAME, Running, encoded, picture, post


def test_landing_page_is_one_file(running: Running) -> None:
    response = running.client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", response.text)
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for link in re.findall(r'href="(?!data:)([^"]+)"', response.text):
        assert running.client.get(link).status_code == 200


def test_api_page_needs_no_internet(running: Running) -> None:
    page = running.client.get("/docs").text
    assets = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert len(assets) >= 3
    for asset in assets:
        assert asset.startswith("/")
        assert running.client.get(asset).status_code == 200
    assert "http://" not in page
    assert "https://" not in page


def test_openapi_documents_bodies_and_errors(running: Running) -> None:
    api = running.client.get("/openapi.json").json()
    classify = api["paths"]["/classify"]["post"]
    assert "multipart/form-data" in classify["requestBody"]["content"]
    assert {f"image/{kind.lower()}" for kind in FORMATS} < classify["requestBody"]["content"].keys()
    assert {"200", "400", "404", "408", "413", "415", "422", "429", "500", "503", "504"} <= classify["responses"].keys()
    for status, response in classify["responses"].items():
        schema = response["content"]["application/json"]["schema"]["$ref"]
        assert schema.endswith("/Classification" if status == "200" else "/ErrorAnswer")
    names = {parameter["name"] for parameter in classify["parameters"]}
    assert {"model", "version", "top_k", "execute_threshold", "explain", "x-request-timeout"} <= names
    assert api["paths"]["/health/ready"]["get"]["responses"].keys() == {"200", "503"}


def test_openapi_documents_where_a_key_may_be_needed(running: Running) -> None:
    api = running.client.get("/openapi.json").json()
    schemes = api["components"]["securitySchemes"]
    either: list[dict[str, list[str]]] = [{name: []} for name in schemes]
    assert [(each["type"], each.get("scheme"), each.get("name")) for each in schemes.values()] == [
        ("http", "bearer", None),
        ("apiKey", None, "X-API-Key"),
    ]
    keyed = {path for path, operations in api["paths"].items() for each in operations.values() if "security" in each}
    assert keyed == {path for path in api["paths"] if path == "/classify" or "infer" in path or "repository" in path}
    assert api["paths"]["/classify"]["post"]["security"] == either


def test_openapi_has_an_example_of_a_response(running: Running) -> None:
    api = running.client.get("/openapi.json").json()
    example = api["paths"]["/classify"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    Classification.model_validate(example)
    body = post(running, encoded(picture(0)), "?top_k=2").json()
    assert paths_in(example) == paths_in(body)


def paths_in(value: Any) -> set[str]:
    """Return the name of every member of a JSON value, with those of the objects around it."""
    if isinstance(value, list):
        return paths_in(value[0])
    if not isinstance(value, dict):
        return {""}
    return {f"{name}.{inner}" for name, each in value.items() for inner in paths_in(each)}


def test_titles_in_openapi_are_written_and_unique(running: Running) -> None:
    api = running.client.get("/openapi.json").json()
    titles = [operation["summary"] for path in api["paths"].values() for operation in path.values()]
    assert len(titles) == len(set(titles))
    # FastAPI makes a title from the function's name if there is none.
    assert all(" " in title for title in titles), titles


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/health/live",
        "/health/ready",
        "/models",
        "/metrics",
        "/v2",
        f"/v2/models/{NAME}",
    ],
)
def test_head_on_the_paths_of_get(running: Running, path: str) -> None:
    got, head = running.client.get(path), running.client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == got.headers["content-length"]


def test_methods_that_are_allowed(running: Running) -> None:
    assert running.client.post("/models").headers["allow"] == "GET, HEAD"
    assert running.client.head("/classify").status_code == 405
    assert running.client.head("/classify").headers["allow"] == "POST"
    assert running.client.head("/nowhere").status_code == 404


def test_redirects_name_no_host(running: Running) -> None:
    response = running.client.get("/docs/?a=b", headers={"host": "upstream"})
    assert (response.status_code, response.headers["location"]) == (307, "/docs?a=b")


def test_models(running: Running) -> None:
    [entry] = running.client.get("/models").json()["models"]
    assert (entry["name"], entry["version"], entry["state"], entry["default"]) == (NAME, 1, "READY", True)
    model = entry["served"]
    assert model["labels"] == LABELS
    assert model["input"] == [3, 32, 32]
    assert (model["blocks"], model["mode"], model["engine"]) == (18, "branch", "torch")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("GET", "/classify", 405, "method_not_allowed")],
)
def test_errors_outside_the_routes_have_the_same_format(
    running: Running, method: str, path: str, status: int, code: str
) -> None:
    response = running.client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


def test_every_code_has_a_status_and_an_outcome() -> None:
    assert STATUS.keys() == set(Code)
    outcomes = {code: outcome_of(STATUS[code]) for code in Code}
    assert outcomes[Code.OVERLOADED] == "rejected"
    assert outcomes[Code.NOT_READY] == "unavailable"
    assert outcomes[Code.DEADLINE] == "deadline"
    assert outcomes[Code.CLIENT_GONE] == "cancelled"
    assert outcomes[Code.DAMAGED_IMAGE] == "bad_input"
    assert outcomes[Code.INTERNAL] == "error"
