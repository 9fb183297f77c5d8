"""Parameters, bodies and forms of POST /classify."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.models.images.test_encoded import KINDS
from tests.service.parts import NAME, PNG, Running, encoded, error_of, picture, post

JPEG = {"content-type": "image/jpeg"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_as_body_and_as_form(running: Running, kind: str) -> None:
    data = encoded(picture(2), kind)
    raw = post(running, data, headers={"content-type": f"image/{kind.lower()}"})
    form = running.client.post("/classify", files={"image": (f"a.{kind.lower()}", data)})
    assert raw.status_code == form.status_code == 200
    assert raw.json()["predictions"] == form.json()["predictions"]


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/x-unheard-of", "IMAGE/JPEG; q=1"])
def test_the_content_type_of_an_image_is_ignored(running: Running, kind: str) -> None:
    assert post(running, encoded(picture(2), "JPEG"), headers={"content-type": kind}).status_code == 200


def test_large_form_stays_in_memory(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/a/folder/that/can/not/be/written")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8))
    data = encoded(noise, "BMP")
    assert len(data) > 2 << 20
    assert running.client.post("/classify", files={"image": data}).status_code == 200


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?model=unknown", 404, "model_not_found"),
        ("?model=../../etc", 404, "model_not_found"),
        (f"?model={NAME}&version=9", 404, "model_not_found"),
        ("?version=-1", 422, "invalid_parameter"),
        ("?version=one", 422, "invalid_parameter"),
        ("?top_k=0", 422, "invalid_parameter"),
        ("?top_k=1001", 422, "invalid_parameter"),
        ("?top_k=many", 422, "invalid_parameter"),
        ("?execute_threshold=1.1", 422, "invalid_parameter"),
        ("?execute_threshold=-0.1", 422, "invalid_parameter"),
        ("?execute_threshold=nan", 422, "invalid_parameter"),
        ("?explain=perhaps", 422, "invalid_parameter"),
        ("?execute_treshold=0.5", 422, "invalid_parameter"),
    ],
)
def test_bad_parameters(running: Running, query: str, status: int, code: str) -> None:
    response = post(running, encoded(picture(0)), query)
    assert (response.status_code, error_of(response)) == (status, code)


def test_message_of_a_bad_parameter_names_it(running: Running) -> None:
    response = post(running, encoded(picture(0)), "?execute_threshold=7")
    assert response.json()["error"]["message"].startswith("execute_threshold: ")


def test_message_of_an_unknown_parameter_lists_the_known_ones(running: Running) -> None:
    response = post(running, encoded(picture(0)), "?topk=1")
    names = "model, version, top_k, execute_threshold, compute_budget, min_margin, explain"
    message = f"topk: unknown parameter; expected one of {names}"
    assert response.json()["error"]["message"] == message


def test_parameters_in_the_form_are_refused_rather_than_ignored(running: Running) -> None:
    response = running.client.post("/classify", files={"image": encoded(picture(0))}, data={"model": "another"})
    assert (response.status_code, error_of(response)) == (422, "invalid_parameter")
    assert "the form's part 'model' would be ignored" in response.json()["error"]["message"]


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf"])
def test_bad_deadline(running: Running, value: str) -> None:
    response = post(running, encoded(picture(0)), headers=PNG | {"x-request-timeout": value})
    assert (response.status_code, error_of(response)) == (422, "invalid_parameter")


@pytest.mark.parametrize(
    ("data", "headers", "status", "code"),
    [
        (b"I am no image", PNG, 415, "unsupported_media_type"),
        (b"I am no image", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"I am no image", {}, 415, "unsupported_media_type"),
        (b'{"image": 1}', {"content-type": "application/json"}, 415, "unsupported_media_type"),
        (b"", PNG, 400, "bad_request"),
        (encoded(picture(0))[:-40], PNG, 400, "damaged_image"),
        (b"x", {"content-type": "multipart/form-data"}, 400, "bad_request"),
        (b"x", {"content-type": "multipart/form-data; boundary=b"}, 400, "bad_request"),
        (b"--b\r\nno headers", {"content-type": "multipart/form-data; boundary=b"}, 400, "bad_request"),
    ],
)
def test_bad_bodies(running: Running, data: bytes, headers: dict[str, str], status: int, code: str) -> None:
    response = post(running, data, headers=headers)
    assert (response.status_code, error_of(response)) == (status, code)


@pytest.mark.parametrize("charset", ["punycode", "undefined", "idna", "utf-7", "no such", "UTF-8"])
def test_the_charset_of_a_form_does_not_matter(running: Running, charset: str) -> None:
    form = running.client.build_request("POST", "/classify", files={"image": encoded(picture(0))})
    for kind in ('{}; charset="{}"', '{}; charset="{}"; x="', "{}; charset={}"):
        kind = kind.format(form.headers["content-type"], charset)
        assert post(running, form.read(), headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        'form-data; name="image"',
        'form-data; name="image"\r\nContent-Type: image/png',
        'form-data; name="image"\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary',
        'form-data; name="image"; filename=""',
        'form-data; name="image"; filename="\u00e9.png"',
        "form-data; name=image",
    ],
)
@pytest.mark.parametrize("size", [0, 3_000_000])
def test_a_part_is_found_by_its_name_with_any_header(running: Running, header: str, size: int) -> None:
    image = encoded(picture(0))
    # PNG readers ignore bytes after the image. Not all of them are UTF-8.
    body = f"--b\r\nContent-Disposition: {header}\r\n\r\n".encode() + image.ljust(size, b"\xff") + b"\r\n--b--\r\n"
    response = post(running, body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert response.json()["predictions"] == post(running, image).json()["predictions"]


def test_two_images_in_a_form_are_refused(running: Running) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + encoded(picture(0)) + b"\r\n"
    response = post(running, part * 2 + b"--b--\r\n", headers={"content-type": "multipart/form-data; boundary=b"})
    assert (response.status_code, error_of(response)) == (400, "bad_request")


@pytest.mark.parametrize(
    "parts",
    [
        {"files": {"picture": encoded(picture(0))}},
        {"files": [("image", encoded(picture(0))), ("image", encoded(picture(1)))]},
        {"files": {"image": b""}},
        {"data": {f"field{i}": "x" for i in range(20)}, "files": {"image": encoded(picture(0))}},
    ],
)
def test_forms_without_one_image(running: Running, parts: dict[str, Any]) -> None:
    response = running.client.post("/classify", **parts)
    assert (response.status_code, error_of(response)) == (400, "bad_request")
