"""The service behind a real HAProxy with the configuration that the compose file uses."""

import logging
import signal
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.repository.loaded_model import LoadedModel
from tests.programs import program
from tests.service.http.connections.client import BODY, Connection, ask
from tests.service.http.connections.haproxy import HAProxy, check_config
from tests.service.parts import NAME, PNG, Running, encoded, engine_of, error_of, picture, until

LARGE = encoded(picture(0, 300, 300), "BMP")
Begin = Callable[..., tuple[Running, HAProxy]]


@pytest.fixture
def behind(start: Callable[..., Running], tmp_path: Path) -> Iterator[Begin]:
    """Start a server, and a proxy in front of it with the variables ``environment``."""
    proxies: list[HAProxy] = []

    def begin(**environment: str) -> tuple[Running, HAProxy]:
        server = start(drain_pause=0.5, max_queue_size=16)
        proxies.append(HAProxy(tmp_path / "haproxy.log", server.port, **environment))
        return server, proxies[-1]

    yield begin
    for each in proxies:
        each.end()


@pytest.fixture
def senders() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def classify(proxy: HAProxy, path: str = "/classify", **headers: str) -> httpx.Response:
    """Send an image over a new connection."""
    return httpx.post(f"{proxy.url}{path}", content=BODY, headers=PNG | headers, timeout=20)


def fill(
    server: Running, proxy: HAProxy, model: LoadedModel, senders: ThreadPoolExecutor
) -> list[Future[httpx.Response]]:
    """Hold the engine, and send two images: one reaches the engine, and one waits in the proxy."""
    engine_of(model).open.clear()
    first = senders.submit(classify, proxy)
    until(lambda: server.container.admission.image_count == 1)
    second = senders.submit(classify, proxy)
    until(lambda: proxy.metric("backend_current_queue", proxy="images") == 1)
    return [first, second]


@pytest.mark.parametrize(
    "variables",
    [{}, {"SKIPNET_REPLICAS": "3"}, {"SKIPNET_KEY_RATE": "20"}, {"SKIPNET_CHECK_PATH": "/health/live"}],
    ids=lambda variables: " ".join(variables) or "defaults",
)
def test_the_configuration_is_valid_without_warnings(variables: dict[str, str]) -> None:
    assert check_config(**variables) == (0, "Configuration file is valid\n")


def test_a_full_queue_is_refused_at_once_and_the_connection_is_kept(
    behind: Begin, model: LoadedModel, senders: ThreadPoolExecutor
) -> None:
    server, proxy = behind(SKIPNET_MAX_REQUESTS="1", SKIPNET_MAX_QUEUE="1", SKIPNET_QUEUE_TIMEOUT="20s")
    waiting = fill(server, proxy, model, senders)
    client = Connection(proxy.port)
    client.send(ask())
    status, headers, body = client.response()
    assert (status, body["error"]["code"]) == (429, "overloaded")  # type: ignore[index]
    assert int(headers["retry-after"]) >= 1
    client.send(ask(f"/v2/models/{NAME}/infer"))
    status, headers, body = client.response()
    assert (status, type(body["error"]), headers["retry-after"]) == (429, str, "1")
    # Probes do not wait behind images.
    client.send(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.response()[0] == 200
    engine_of(model).open.set()
    assert [each.result().status_code for each in waiting] == [200, 200]
    client.send(ask())
    assert client.response()[0] == 200
    client.close()
    assert proxy.metric("backend_requests_denied_total", proxy="images") == 2


def test_a_request_that_waited_too_long_is_refused(
    behind: Begin, model: LoadedModel, senders: ThreadPoolExecutor
) -> None:
    server, proxy = behind(SKIPNET_MAX_REQUESTS="1", SKIPNET_QUEUE_TIMEOUT="300ms")
    first, second = fill(server, proxy, model, senders)
    refused = second.result()
    assert (refused.status_code, error_of(refused), refused.headers["retry-after"]) == (429, "overloaded", "1")
    engine_of(model).open.set()
    assert first.result().status_code == 200


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("headers", [[], ["-H", "Connection: close"]], ids=["pooled connections", "new connections"])
def test_no_connection_is_reset_under_overload(behind: Begin, tmp_path: Path, headers: list[str], body: bytes) -> None:
    _, proxy = behind(SKIPNET_MAX_REQUESTS="2", SKIPNET_MAX_QUEUE="2")
    (tmp_path / "image").write_bytes(body)
    load = [program("h2load", "nghttp2-client"), "--h1", "-n", "240", "-c", "40", f"--log-file={tmp_path / 'log'}"]
    load += ["-d", str(tmp_path / "image"), "-H", "Content-Type: image/png", *headers, f"{proxy.url}/classify"]
    subprocess.run(load, check=True, capture_output=True)
    statuses = Counter(line.split("\t")[1] for line in (tmp_path / "log").read_text().splitlines())
    assert statuses.keys() == {"200", "429"}
    assert statuses.total() == 240


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["small", "large"])
def test_slow_clients_do_not_delay_others(behind: Begin, body: bytes) -> None:
    server, proxy = behind(SKIPNET_MAX_REQUESTS="2")
    slow = [Connection(proxy.port) for _ in range(6 if body is BODY else 2)]
    for each in slow:
        each.send(ask(body=body)[:-1])
    if body is BODY:
        until(lambda: proxy.metric("frontend_current_sessions", proxy="skipnet") == len(slow))
    else:
        until(lambda: server.container.admission.byte_count > len(body))
    assert classify(proxy).status_code == 200
    slow[0].send(ask(body=body)[-1:])
    assert slow[0].response()[0] == 200
    for each in slow:
        each.close()


@pytest.mark.parametrize(
    "head", [b"X-Long: " + b"x" * 70_000, b"\r\n".join(b"X-%d: x" % i for i in range(120))], ids=["bytes", "lines"]
)
def test_long_heads_are_refused(behind: Begin, head: bytes) -> None:
    _, proxy = behind()
    client = Connection(proxy.port)
    client.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
    assert client.head().split()[1] in ("400", "431")
    client.close()


def test_a_service_that_drains_loses_no_request(behind: Begin, senders: ThreadPoolExecutor) -> None:
    server, proxy = behind()
    ended = threading.Event()
    begun = threading.Semaphore(0)

    def send() -> Counter[int]:
        responses: Counter[int] = Counter()
        with httpx.Client(base_url=proxy.url, timeout=20) as client:
            while not ended.is_set():
                response = client.post("/classify", content=BODY, headers=PNG)
                responses[response.status_code] += 1
                begun.release()
        return responses

    results = [senders.submit(send) for _ in range(4)]
    for _ in range(20):
        assert begun.acquire(timeout=20)
    server.server.handle_exit(signal.SIGTERM, None)
    server.thread.join(20)
    for _ in range(20):
        assert begun.acquire(timeout=20)
    ended.set()
    responses = sum((each.result() for each in results), Counter())
    assert responses.keys() == {200, 503}
    away = classify(proxy, path=f"/v2/models/{NAME}/infer")
    assert (away.status_code, away.headers["retry-after"], type(away.json()["error"])) == (503, "1", str)


def test_a_draining_proxy_finishes_its_requests_and_ends(
    behind: Begin, model: LoadedModel, senders: ThreadPoolExecutor
) -> None:
    server, proxy = behind(SKIPNET_MAX_REQUESTS="1", SKIPNET_QUEUE_TIMEOUT="20s")
    kept = Connection(proxy.port)
    kept.send(ask())
    assert kept.response()[0] == 200
    waiting = fill(server, proxy, model, senders)
    proxy.drain()
    until(lambda: not proxy.listening())
    engine_of(model).open.set()
    assert [each.result().status_code for each in waiting] == [200, 200]
    # A request on an earlier connection gets a response too.
    kept.send(ask())
    status, headers, _ = kept.response()
    assert (status, headers["connection"]) == (200, "close")
    assert kept.ended()
    kept.close()
    assert proxy.process.wait(20) == 0


def test_each_key_has_its_own_rate(behind: Begin) -> None:
    _, proxy = behind(SKIPNET_KEY_RATE="1")
    responses = [classify(proxy, **{"X-API-Key": "one"}) for _ in range(12)]
    statuses = [each.status_code for each in responses]
    assert statuses == sorted(statuses) and set(statuses) == {200, 429}
    assert responses[-1].headers["retry-after"] == "1"
    assert classify(proxy, **{"X-API-Key": "two"}).status_code == 200
    assert classify(proxy, Authorization="Bearer three").status_code == 200


def test_the_service_logs_the_address_that_the_proxy_saw(behind: Begin, caplog: pytest.LogCaptureFixture) -> None:
    _, proxy = behind()
    caplog.set_level(logging.INFO, "skipnet.access")
    assert classify(proxy, **{"X-Forwarded-For": "203.0.113.9"}).status_code == 200
    assert [record.fields["client"] for record in caplog.records] == ["127.0.0.1"]  # type: ignore[attr-defined]


def test_tls_ends_at_the_proxy(behind: Begin, tmp_path: Path) -> None:
    certificate = tmp_path / "skipnet.pem"
    make = "openssl req -x509 -newkey rsa:2048 -noenc -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-keyout", certificate, "-out", tmp_path / "crt"], check=True, capture_output=True)
    certificate.write_text((tmp_path / "crt").read_text() + certificate.read_text())
    _, proxy = behind(SKIPNET_CERTIFICATE=str(certificate))
    trusted = ssl.create_default_context(cafile=tmp_path / "crt")
    with httpx.Client(base_url=proxy.url, verify=trusted) as client:
        assert client.post("/classify", content=BODY, headers=PNG).status_code == 200
