"""A canary serves its share of the requests, and a client always gets the same version."""

import random
from collections.abc import Callable
from shutil import copytree

import pytest

from models.errors import UserError
from service.container import Container
from service.rollout.canary import Canary
from service.rollout.shares import Share
from service.settings import Settings
from tests.service.parts import NAME, PNG, Running, encoded, picture, until

IMAGE = encoded(picture(0))


def canary(share: float) -> Canary:
    return Canary({NAME: Share(7, share)}, "X-Client-ID", lambda _, version: version == 7)


def chosen(share: float) -> set[str]:
    clients = [str(number) for number in range(2000)]
    return {client for client in clients if canary(share).version_for(NAME, {"x-client-id": client}) == 7}


def test_a_share_of_the_clients_gets_the_canary_and_keeps_it_when_the_share_grows() -> None:
    few, many = chosen(0.05), chosen(0.3)
    assert 60 < len(few) < 140
    assert 500 < len(many) < 700
    assert few < many


def test_without_the_header_the_choice_is_random() -> None:
    random.seed(0)
    drawn = [canary(0.3).version_for(NAME, {}) for _ in range(2000)]
    assert 500 < drawn.count(7) < 700
    assert canary(1.0).version_for("another", {}) is None


def test_requests_without_a_version_are_split(shelf: Callable[..., Running]) -> None:
    server = shelf(canary=f"{NAME}=2:0.5", canary_header="X-User", watch_interval=0.01)
    folder = server.container.settings.model_repository

    def version(user: str = "", query: str = "", path: str = "/classify") -> int:
        headers = PNG | ({"X-User": user} if user else {})
        return int(server.client.post(f"{path}{query}", content=IMAGE, headers=headers).json()["model"]["version"])

    def infer(user: str) -> int:
        body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.0] * 3072}]}
        response = server.client.post(f"/v2/models/{NAME}/infer", json=body, headers={"X-User": user})
        return int(response.json()["model_version"])

    assert {version() for _ in range(8)} == {1}, "the canary is not published yet"
    for number in ("2", "3"):
        copytree(folder / NAME / "1", folder / NAME / f".{number}")
        (folder / NAME / f".{number}").rename(folder / NAME / number)
    # The newest version replaces the usual one, and the canary is loaded beside it.
    until(lambda: sorted(server.container.repository.loaded[NAME]) == [2, 3])
    users = [str(number) for number in range(16)]
    first = {user: version(user) for user in users}
    assert set(first.values()) == {2, 3}
    assert {user: version(user) for user in users} == first == {user: infer(user) for user in users}
    assert {version() for _ in range(40)} == {2, 3}
    assert {version(query="?version=3") for _ in range(8)} == {3}
    # After its promotion, the canary serves every request.
    assert server.client.post(f"/v2/repository/models/{NAME}/promote", json={"parameters": {"version": 2}}).is_success
    assert {version(user) for user in users} == {2}


@pytest.mark.parametrize("wrong", ["x", "x=7", "x=7:2", "x=7:0.5:1", "=7:0.5", "x=dense:0.1"])
def test_a_malformed_share_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="canary"):
        Settings(canary=[wrong])


def test_a_model_has_one_canary() -> None:
    with pytest.raises(UserError, match="names the model x twice"):
        Container(Settings(canary=["x=7:0.1", "x=8:0.1"]))
