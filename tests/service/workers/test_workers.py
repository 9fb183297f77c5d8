"""Several worker processes on one address: requests that concern all of them, and their end."""

import asyncio
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from starlette.types import Receive, Scope, Send

from models.errors import UserError
from service.app import create_app
from service.http.request_context import RequestContext
from service.settings import Settings
from service.workers.collective import Collective, change_lock
from service.workers.pool import bind
from tests.service.parts import NAME, PNG, Process, encoded, picture, until

BOSS = {"x-api-key": "boss"}
OPTIONS = (
    *("--workers", "2", "--engine", "torch", "--routing", "branch", "--threads", "1", "--max-batch-size", "2"),
    # On a slow machine a dense sample would add to the MACs.
    *("--dense-sample-interval", "0"),
)


def get(url: str) -> httpx.Response:
    """Send a request over a new connection, which may reach any worker."""
    return httpx.get(url, timeout=20)


def classify(url: str, seed: int) -> httpx.Response:
    return httpx.post(f"{url}/classify", content=encoded(picture(seed)), headers=PNG, timeout=20)


def until_ready(url: str) -> None:
    until(lambda: get(f"{url}/health/ready").status_code == 200, 120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    return Path(copytree(repository, tmp_path_factory.mktemp("workers") / "repository"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Process]:
    """Two workers, shared by the tests that leave them running."""
    log = tmp_path_factory.mktemp("log") / "log"
    process = Process(log, *OPTIONS, "--model-repository", str(folder), "--management-keys", '["boss"]')
    try:
        until_ready(process.url())
        yield process
    finally:
        process.end()


def scrape(url: str) -> dict[str, float]:
    """Return the value of every series, by its name and the sorted values of its labels."""
    families = parse(get(f"{url}/metrics").text)
    return {
        " ".join([sample.name, *sorted(sample.labels.values())]): sample.value
        for family in families
        for sample in family.samples
    }


def test_counters_are_sums_and_never_fall(pair: Process) -> None:
    url = pair.url()
    with ThreadPoolExecutor(4) as pool:
        responses = pool.map(lambda seed: classify(url, seed).json(), range(48))
        scrapes = [scrape(url) for _ in range(12)]
        routings = [body["routing"] for body in responses]
    until(lambda: scrape(url)[f"skipnet_batch_size_sum 1 {NAME}"] == 48)
    last = scrape(url)
    for before, after in zip(scrapes, [*scrapes[1:], last], strict=True):
        assert not [key for key, value in before.items() if counts(key) and after[key] < value]
    assert last[f"skipnet_requests_total 1 {NAME} ok"] == 48
    assert last[f"skipnet_macs_total 1 {NAME} executed"] == sum(routing["macs"] for routing in routings)
    assert last[f"skipnet_macs_total 1 {NAME} dense"] == sum(routing["dense_macs"] for routing in routings)
    assert last[f"skipnet_blocks_skipped_sum 1 {NAME}"] == sum(routing["skipped"] for routing in routings)
    assert last[f"skipnet_request_duration_seconds_count 1 {NAME}"] == 48
    assert last[f"skipnet_model_info 1 {NAME} {NAME} cpu torch"] == 1
    assert last["skipnet_ready"] == 1
    classified = re.findall(r'POST /classify 200 .*process="(worker \d)"', pair.lines)
    assert len(classified) == 48
    assert set(classified) == {"worker 1", "worker 2"}


def counts(series: str) -> bool:
    return series.split()[0].endswith(("_total", "_count", "_sum", "_bucket"))


def test_exemplars_are_kept(pair: Process) -> None:
    classify(pair.url(), 0)
    rich = httpx.get(f"{pair.url()}/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
    assert rich.headers["content-type"].startswith("application/openmetrics-text")
    assert ' # {request_id="' in rich.text


def test_loads_and_unloads_reach_every_worker(pair: Process, folder: Path) -> None:
    url = pair.url()

    def versions() -> set[int]:
        return {classify(url, seed).json().get("model", {}).get("version", 0) for seed in range(12)}

    def manage(what: str, key: dict[str, str] = BOSS, **parameters: int) -> httpx.Response:
        return httpx.post(
            f"{url}/v2/repository/models/{NAME}/{what}", json={"parameters": parameters}, headers=key, timeout=120
        )

    assert versions() == {1}
    copytree(folder / NAME / "1", folder / NAME / "2")
    assert manage("load", key={}).status_code == 401
    assert versions() == {1}
    assert manage("load").status_code == 200
    assert versions() == {2}
    copytree(folder / NAME / "1", folder / NAME / "3")
    (folder / NAME / "3" / "model.safetensors").write_bytes(b"junk")
    refused = manage("load")
    assert refused.status_code == 400
    assert "safetensors" in refused.json()["error"]
    assert versions() == {2}
    assert manage("unload").status_code == 200
    assert {get(f"{url}/health/ready").status_code for _ in range(12)} == {503}
    assert {get(f"{url}/v2/models/{NAME}/ready").status_code for _ in range(12)} == {404}
    assert {get(f"{url}/v2/health/live").status_code for _ in range(12)} == {200}
    assert versions() == {0}
    assert manage("load", version=1).status_code == 200
    assert versions() == {1}


def test_a_rollback_takes_every_worker_to_the_same_version(pair: Process, folder: Path) -> None:
    url = pair.url()

    def manage(what: str, **parameters: int) -> Any:
        address = f"{url}/v2/repository/models/{NAME}/{what}"
        return httpx.post(address, json={"parameters": parameters}, headers=BOSS, timeout=120).json()

    for version in (11, 12, 13):
        copytree(folder / NAME / "1", folder / NAME / str(version))
        assert manage("promote", version=version)["version"] == str(version)
    assert manage("rollback") == {"name": NAME, "version": "12", "before": "13"}
    assert {classify(url, seed).json()["model"]["version"] for seed in range(12)} == {12}
    # As it was before.
    (folder / NAME / "promoted.json").unlink()
    for version in (11, 12, 13):
        rmtree(folder / NAME / str(version))
    assert manage("unload") is None
    assert manage("load", version=1) is None


def test_the_key_is_checked_before_the_body_is_read(pair: Process) -> None:
    address = httpx.URL(pair.url())
    with socket.create_connection((address.host, address.port), 20) as client:
        client.sendall(
            f"POST /v2/repository/models/{NAME}/unload HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n".encode()
        )
        assert b"401 Unauthorized" in client.recv(1000)


def test_an_incomplete_change_names_the_workers_that_changed(repository: Path, tmp_path: Path) -> None:
    app = create_app(Settings(model_repository=repository))
    collective = Collective(app, [tmp_path / "worker-1"])
    statuses = [200, 400, 200]
    called: list[int] = []

    def worker(number: int) -> httpx.AsyncClient:
        def respond(_: httpx.Request) -> httpx.Response:
            called.append(number)
            return httpx.Response(statuses[number - 1], json={"error": "no memory"})

        return httpx.AsyncClient(transport=httpx.MockTransport(respond))

    async def placed(scope: Scope, receive: Receive, send: Send) -> None:
        await collective({**scope, "app": app, "state": {"context": RequestContext("id")}}, receive, send)

    async def unload() -> httpx.Response:
        collective.workers = [worker(number) for number in (1, 2, 3)]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(placed), base_url="http://x:1") as client:
            return await client.post(f"/v2/repository/models/{NAME}/unload")

    response = asyncio.run(unload())
    assert response.status_code == 400
    assert response.json() == {"error": "worker 2 of 3 refused; only those before it have changed: no memory"}
    assert called == [1, 2]
    statuses[0] = 400
    assert asyncio.run(unload()).json() == {"error": "no memory"}


def test_changes_run_one_at_a_time(tmp_path: Path) -> None:
    async def two() -> None:
        async with change_lock(tmp_path):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), change_lock(tmp_path):
                    pytest.fail("changed at the same time as another")
        async with change_lock(tmp_path):
            pass

    asyncio.run(two())


def test_workers_agree_after_concurrent_changes(pair: Process, folder: Path) -> None:
    url = pair.url()
    copytree(folder / NAME / "1", folder / NAME / "5")

    def change(what: str) -> int:
        address = f"{url}/v2/repository/models/{NAME}/{what}"
        return httpx.post(address, json={"parameters": {"version": 5}}, headers=BOSS, timeout=120).status_code

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(change, ("load", "unload") * 3)) <= {200, 400}
    image = encoded(picture(0))
    found = [httpx.post(f"{url}/classify?version=5", content=image, headers=PNG, timeout=20) for _ in range(12)]
    assert len({each.status_code for each in found}) == 1


def test_a_signal_ends_all_workers_after_their_admitted_requests(
    launch: Callable[..., Process], repository: Path
) -> None:
    serve = launch(*OPTIONS, "--model-repository", str(repository), "--drain-pause", "1000")
    url = serve.url()
    until_ready(url)
    with ThreadPoolExecutor(8) as pool:
        serve.process.send_signal(signal.SIGTERM)
        until(lambda: get(f"{url}/health/ready").status_code == 503)
        in_the_pause = [pool.submit(classify, url, seed) for seed in range(8)]
        assert {each.result().status_code for each in in_the_pause} == {200}
    address, image = httpx.URL(url), encoded(picture(8))
    with socket.create_connection((address.host, address.port), 20) as client:
        lines = ("POST /classify HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {len(image)}")
        client.sendall("\r\n".join((*lines, "Expect: 100-continue", "", "")).encode())
        assert b"100 Continue" in client.recv(1000)
        serve.process.send_signal(signal.SIGTERM)
        until(lambda: not listens(url))
        client.sendall(image)
        assert b"200 OK" in client.recv(1000)
    assert serve.process.wait(60) == 0
    assert "Traceback" not in serve.lines
    assert "ended with code" not in serve.lines


def test_the_death_of_one_worker_ends_all(launch: Callable[..., Process], repository: Path) -> None:
    serve = launch(*OPTIONS, "--model-repository", str(repository))
    url = serve.url()
    until_ready(url)
    os.kill(workers_of(serve)[0], signal.SIGKILL)
    assert serve.process.wait(60) == 1
    assert "ended with code -9: ending the others" in serve.lines
    with pytest.raises(httpx.ConnectError):
        get(f"{url}/health/live")


def test_workers_end_with_their_parent(launch: Callable[..., Process], repository: Path) -> None:
    serve = launch(*OPTIONS, "--model-repository", str(repository))
    serve.url()
    workers = workers_of(serve)
    assert len(workers) == 2
    serve.process.kill()
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 60)


def test_an_empty_repository_ends_with_a_reason(launch: Callable[..., Process], tmp_path: Path) -> None:
    serve = launch("--workers", "2", "--model-repository", str(tmp_path / "nothing"))
    assert serve.process.wait(60) == 1
    assert f"no model in {tmp_path / 'nothing'} can be served" in serve.lines


def test_the_port_of_another_server_is_refused() -> None:
    first, second = bind("127.0.0.1", 0, 2)
    try:
        assert first.getsockname() == second.getsockname()
        with pytest.raises(UserError, match="in use"):
            bind("127.0.0.1", first.getsockname()[1], 2)
    finally:
        first.close()
        second.close()


def test_an_unknown_host_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"nowhere\.invalid"):
        bind("nowhere.invalid", 0, 2)


def listens(url: str) -> bool:
    try:
        get(f"{url}/health/live")
    except httpx.TransportError:
        return False
    return True


def workers_of(serve: Process) -> list[int]:
    """Return the workers' process ids: the children that listen."""
    children = Path(f"/proc/{serve.process.pid}/task/{serve.process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
