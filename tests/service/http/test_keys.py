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


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        (" key", "begins or ends with a space"),
        ("key\n", "begins or ends with a space"),
        ("k\x00y", "has a control character"),
    ],
)
def test_a_setting_with_a_key_that_no_client_can_send_is_refused(key: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"API key 2 of the setting .*{problem}") as caught:
        inference_keys(Settings(api_keys=["good", key]))
    assert "good" not in str(caught.value)
    with pytest.raises(UserError, match=f"management key 1 of the setting .*{problem}"):
        management_keys(Settings(management_keys=[key]))


def test_comments_in_a_keys_file_are_not_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes("\ufeff# my keys\nfirst\n\n  # another\nsecond  # of Alice\nth#ird\n".encode())
    for keys in (inference_keys(Settings(api_keys_file=file)), management_keys(Settings(management_keys_file=file))):
        assert keys.keys == [b"first", b"second", b"th#ird"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('["first", "second"]', 1),
        ('# keys\n[\n  "first"\n]', 2),
        ('first\n"second"', 2),
        ('{"keys": []}', 1),
        ("first\n'second'\n", 2),
        ("first second\n", 1),
        ("\n\nAlice: first", 3),
        ("first\x00", 1),
    ],
)
def test_an_invalid_line_of_a_keys_file_is_named_but_not_quoted(tmp_path: Path, content: str, line: int) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    for read, settings in (
        (inference_keys, Settings(api_keys_file=file)),
        (management_keys, Settings(management_keys_file=file)),
    ):
        with pytest.raises(UserError, match=f"{file}, line {line}\\b.*write one key a line") as caught:
            read(settings)
        assert "first" not in str(caught.value)


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


def test_management_has_separate_keys(start: Callable[..., Running]) -> None:
    server = start(api_keys=["user"], management_keys=["operator"])
    assert load(server, **bearer("operator")).status_code == 200
    unknown = load(server, **bearer("unknown"))
    assert (unknown.status_code, "the key is unknown" in unknown.text) == (401, True)
    missing = server.client.post("/v2/repository/index")
    assert (missing.status_code, "no key was sent" in missing.text) == (401, True)


def test_a_key_of_the_other_kind_is_forbidden(start: Callable[..., Running]) -> None:
    server = start(api_keys=["user"], management_keys=["operator"])
    index = server.client.post("/v2/repository/index", headers=bearer("user"))
    infer = server.client.post(f"/v2/models/{NAME}/infer", json={}, headers=bearer("operator"))
    for refused, action in (
        (load(server, **bearer("user")), "manage the repository"),
        (load(server, **{"x-api-key": "user"}), "manage the repository"),
        (index, "manage the repository"),
        (classify(server, **bearer("operator")), "classify"),
        (infer, "classify"),
    ):
        assert (refused.status_code, f"this key may not {action}" in refused.text) == (403, True)
        assert "www-authenticate" not in refused.headers


def test_management_is_not_open_if_only_inference_has_keys(start: Callable[..., Running]) -> None:
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
