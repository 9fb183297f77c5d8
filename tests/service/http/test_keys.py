import hmac
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from models.errors import UserError
from service.http.keys import inference_keys, management_keys
from service.settings import Settings
from tests.service.parts import NAME, PNG, Running, encoded, picture


def classify(server: Running, **headers: str) -> httpx.Response:
    return server.client.post("/classify", content=encoded(picture(0)), headers=PNG | headers)


def load(server: Running, **headers: str) -> httpx.Response:
    return server.client.post(f"/v2/repository/models/{NAME}/load", headers=headers)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_several_keys_from_settings_and_file(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("third\n\n  fourth  \n")
    server = start(api_keys=["first", "second"], api_keys_file=tmp_path / "keys")
    for key in ("first", "second", "third", "fourth"):
        assert classify(server, **bearer(key)).status_code == 200
        assert classify(server, **{"x-api-key": key}).status_code == 200
    for headers in ({}, bearer("fifth"), {"authorization": "Basic first"}, {"x-api-key": "firs"}):
        refused = classify(server, **headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
    assert server.client.post(f"/v2/models/{NAME}/infer", json={}).status_code == 401
    for path in ("/", "/health/live", "/health/ready", "/metrics", "/v2/health/ready", "/openapi.json"):
        assert server.client.get(path).status_code == 200


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_key_is_refused_at_the_start(empty: str) -> None:
    for settings in (Settings(api_keys=["good", empty]), Settings(management_keys=[empty])):
        with pytest.raises(UserError, match="an API key is empty"):
            inference_keys(settings), management_keys(settings)


def test_a_key_may_have_any_letters(start: Callable[..., Running]) -> None:
    server = start(api_keys=["clé"])
    given = {b"content-type": b"image/png", b"x-api-key": "clé".encode()}
    assert server.client.post("/classify", content=encoded(picture(0)), headers=given).status_code == 200


def test_each_key_is_compared_in_constant_time(start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(api_keys=["first", "second", "third"])
    compared: list[tuple[bytes, bytes]] = []
    original = hmac.compare_digest

    def watched(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return original(given, key)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    for given, status in ((b"first", 200), (b"wrong", 401)):
        compared.clear()
        assert classify(server, **bearer(given.decode())).status_code == status
        assert compared == [(given, b"first"), (given, b"second"), (given, b"third")]


def test_management_has_keys_of_its_own(start: Callable[..., Running]) -> None:
    server = start(api_keys=["user"], management_keys=["operator"])
    assert load(server, **bearer("user")).status_code == 401
    assert load(server, **bearer("operator")).status_code == 200
    assert classify(server, **bearer("operator")).status_code == 401
    assert server.client.post("/v2/repository/index").status_code == 401


def test_management_is_not_left_open_where_only_inference_has_keys(start: Callable[..., Running]) -> None:
    server = start(api_keys=["user"])
    assert load(server).status_code == 401
    assert load(server, **bearer("user")).status_code == 200


def test_inference_may_be_open_while_management_is_not(start: Callable[..., Running]) -> None:
    server = start(management_keys=["operator"])
    assert classify(server).status_code == 200
    assert load(server).status_code == 401


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_file_without_a_key_keeps_the_server_from_starting_open(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(UserError):
        inference_keys(Settings(api_keys_file=tmp_path / "keys"))
    with pytest.raises(UserError):
        management_keys(Settings(management_keys_file=tmp_path / "keys"))


def test_keys_do_not_show() -> None:
    assert "hush" not in repr(Settings(api_keys=["hush"], management_keys=["hush"]))


def test_cors_by_setting(start: Callable[..., Running], running: Running) -> None:
    server = start(cors_origins=["https://photos.example"])
    ask = {"origin": "https://photos.example", "access-control-request-method": "POST"}
    assert server.client.options("/classify", headers=ask).headers["access-control-allow-origin"] == ask["origin"]
    other = server.client.options("/classify", headers=ask | {"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in running.client.get("/models", headers=ask).headers
