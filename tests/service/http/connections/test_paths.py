"""The service under a path prefix, behind a real nginx that removes the prefix and one that keeps it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.service.http.connections.nginx import Nginx
from tests.service.parts import PNG, Running, encoded, picture

SERVERS = {
    "removed": "location /skipnet/ { proxy_pass http://service/; }",
    "kept": "location /skipnet/ { proxy_pass http://service; }",
}


@pytest.fixture
def server(start: Callable[..., Running]) -> Running:
    return start(root_path="/skipnet")


@pytest.fixture(params=SERVERS)
def client(server: Running, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    nginx = Nginx(tmp_path, server.port, SERVERS[request.param])
    with httpx.Client(base_url=nginx.url, timeout=20) as opened:
        yield opened
    nginx.end()


def linked(client: httpx.Client, path: str) -> list[str]:
    """Return the absolute paths of a page's links and resources."""
    text = client.get(path).text
    found = re.findall(r"""(?:src|href)=["'](?!data:)([^"']+)|fetch\(["']([^"'?]+)|url: '([^']+)'""", text)
    return [urljoin(path, "".join(each)) for each in found]


def test_page_and_docs(client: httpx.Client) -> None:
    assert {"/skipnet/docs", "/skipnet/models", "/skipnet/metrics"} <= set(linked(client, "/skipnet/"))
    docs = linked(client, "/skipnet/docs")
    assert "/skipnet/openapi.json" in docs and len(docs) >= 4
    for path in [*linked(client, "/skipnet/"), *docs]:
        assert client.get(path).status_code == (405 if path == "/skipnet/classify" else 200), path
    assert client.get("/skipnet/openapi.json").json()["servers"] == [{"url": "/skipnet"}]


def test_redirects(client: httpx.Client) -> None:
    response = client.get("/skipnet/docs/")
    assert (response.status_code, response.headers["location"]) == (307, "/skipnet/docs")
    assert client.get("/skipnet/docs/", follow_redirects=True).status_code == 200


def test_requests(client: httpx.Client, server: Running) -> None:
    assert client.post("/skipnet/classify", content=encoded(picture(0)), headers=PNG).status_code == 200
    assert client.get("/skipnet/v2/health/ready").status_code == 200
    assert client.post("/skipnet/v2/models/none/infer", content="{}").json().keys() == {"error"}
    assert isinstance(client.get("/skipnet/v2/models/none").json()["error"], str)
    assert server.metric("requests_total", outcome="ok") == 1
    assert server.metric("requests_total", outcome="bad_input") == 1


def test_probes_do_not_need_the_prefix(server: Running) -> None:
    for path in ("/health/live", "/skipnet/health/live", "/metrics", "/docs"):
        assert server.client.get(path).status_code == 200
    assert server.client.get("/skipnetwork/health/live").status_code == 404
    assert server.client.get("/skipnet").headers["location"] == "/skipnet/"


@pytest.mark.parametrize("path", ["skipnet", "/skipnet/", "/skip net", "/a?b", "//evil"])
def test_bad_prefixes(start: Callable[..., Running], path: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        start(root_path=path)
