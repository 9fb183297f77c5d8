"""The process: signals, draining, exit codes."""

import resource
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.inference.decoder import MAX_SCANS
from service.repository.loaded_model import LoadedModel
from service.server import open_many_files
from tests.service.parts import PNG, Process, Running, encoded, engine_of, picture, until


def classify(server: Running, seed: int = 0) -> httpx.Response:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        return client.post("/classify", content=encoded(picture(seed)), headers=PNG)


def refuses_connections(server: Running) -> bool:
    try:
        httpx.get(f"{server.url}/health/live", timeout=20)
    except httpx.ConnectError:
        return True
    return False


def test_drain_serves_during_the_pause_and_then_finishes_admitted_requests(
    start: Callable[..., Running], model: LoadedModel
) -> None:
    server = start(drain_pause=1000)
    engine_of(model).open.clear()
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(classify, server, 0)
        until(lambda: server.container.admission.image_count == 1)
        server.server.handle_exit(signal.SIGTERM, None)
        ready = server.client.get("/health/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["draining"])
        assert ready.headers["connection"] == "close"
        assert server.client.get("/health/live").status_code == 200
        in_the_pause = pool.submit(classify, server, 1)
        until(lambda: server.container.admission.image_count == 2)

        server.server.handle_exit(signal.SIGTERM, None)
        until(lambda: refuses_connections(server))
        assert server.thread.is_alive()
        engine_of(model).open.set()
        assert [before.result().status_code, in_the_pause.result().status_code] == [200, 200]
    server.thread.join(20)
    assert not server.thread.is_alive()
    assert server.server.exit_code == 0
    assert server.metric("requests_total", outcome="ok") == 2


def test_new_connections_are_accepted_while_the_event_loop_is_busy(start: Callable[..., Running]) -> None:
    server = start()
    loop, turns = server.container.pipeline.batcher._loop, 0

    def busy() -> None:
        nonlocal turns
        turns += 1
        time.sleep(0.01)
        loop.call_soon(busy)

    clients = [socket.socket() for _ in range(200)]
    loop.call_soon_threadsafe(busy)
    for client in clients:
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    began = turns
    for client in clients:
        client.settimeout(20)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
    # With one connection in each iteration, it would take two hundred iterations.
    assert turns - began < 100


def test_a_request_that_is_being_sent_at_shutdown_gets_a_response(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.server.GRACE_SECONDS", 5)
    server = start()
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        server.server.handle_exit(signal.SIGTERM, None)
        until(lambda: server.container.health.closed)
        client.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1\r\n\r\nx")
        assert client.recv(100).startswith(b"HTTP/1.1 503")
        while client.recv(4096):
            pass  # The connection then ends.


def test_connections_in_the_backlog_get_a_response_at_shutdown(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    clients = [socket.socket() for _ in range(200)]
    close = server.container.close

    def close_late() -> None:
        # The event loop waits for this, so the kernel holds these connections and the server has not accepted them.
        for client in clients:
            client.settimeout(20)
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        close()

    monkeypatch.setattr(server.container, "close", close_late)
    server.server.handle_exit(signal.SIGTERM, None)
    until(lambda: server.container.health.closed)
    for client in clients:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
    server.thread.join(20)
    assert not server.thread.is_alive()
    with pytest.raises(ConnectionRefusedError), socket.socket() as client:
        client.connect(("127.0.0.1", server.port))


def test_request_after_the_end_is_refused_with_503(start: Callable[..., Running]) -> None:
    server = start()
    server.container.health.draining = server.container.health.closed = True
    response = classify(server)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
    assert response.headers["retry-after"] == "1"
    assert response.headers["connection"] == "close"


def test_a_stuck_engine_does_not_delay_the_exit(start: Callable[..., Running], model: LoadedModel) -> None:
    server = start(drain_timeout=0.1)
    engine_of(model).open.clear()
    late = server.client.post("/classify", content=encoded(picture(0)), headers=PNG | {"x-request-timeout": "0.1"})
    assert late.status_code == 504
    server.server.handle_exit(signal.SIGTERM, None)
    server.thread.join(20)
    assert not server.thread.is_alive()


def test_a_process_from_start_to_end(launch: Callable[..., Process], repository: Path) -> None:
    serve = launch(
        *("--engine", "torch", "--routing", "branch", "--threads", "1", "--max-batch-size", "2"),
        SKIPNET_MODEL_REPOSITORY=str(repository),
        SKIPNET_LOG_FORMAT="text",
    )
    with httpx.Client(base_url=serve.url(), timeout=20) as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 503
        until(lambda: client.get("/health/ready").status_code == 200, 120)
        classified = client.post(
            "/classify", content=encoded(picture(0)), headers=PNG | {"x-request-id": "look-for-me"}
        )
        assert classified.status_code == 200
    serve.process.send_signal(signal.SIGTERM)
    assert serve.process.wait(30) == 0
    [line] = [line for line in serve.lines.splitlines() if "request_id=look-for-me" in line]
    assert "POST /classify 200" in line
    assert f"skipped={classified.json()['routing']['skipped']}" in line
    assert "/health" not in serve.lines
    assert "Traceback" not in serve.lines


def test_a_stuck_decoder_does_not_delay_the_exit(launch: Callable[..., Process], repository: Path) -> None:
    serve = launch(
        *(
            "--engine",
            "torch",
            "--routing",
            "branch",
            "--threads",
            "1",
            "--max-batch-size",
            "2",
            "--decode-threads",
            "1",
        ),
        *("--max-image-pixels", "80000000", "--max-decode-memory", str(2 << 30), "--drain-timeout", "0.1"),
        SKIPNET_MODEL_REPOSITORY=str(repository),
    )
    # Nearly the largest number of scans, each of a complete large image, takes seconds.
    progressive = encoded(Image.new("L", (8900, 8900)), "JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    slow = progressive[:-2] + progressive[last:-2] * (MAX_SCANS - 20) + progressive[-2:]
    with httpx.Client(base_url=serve.url(), timeout=60) as client:
        until(lambda: client.get("/health/ready").status_code == 200, 120)
        late = client.post("/classify", content=slow, headers=PNG | {"x-request-timeout": "1"})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    serve.process.send_signal(signal.SIGTERM)
    assert serve.process.wait(30) == 0
    assert "stopped" in serve.lines


def test_a_mistyped_variable_is_logged(launch: Callable[..., Process], tmp_path: Path) -> None:
    serve = launch("--model-repository", str(tmp_path), SKIPNET_API_KEY="secret", SKIPNET_RECIPE="short")
    assert serve.process.wait(60) == 1
    assert "SKIPNET_API_KEY: unknown setting, ignored; did you mean SKIPNET_API_KEYS?" in serve.lines
    assert "SKIPNET_RECIPE" not in serve.lines and "secret" not in serve.lines


@pytest.mark.parametrize(("keys", "warned"), [({}, True), ({"SKIPNET_API_KEYS": '["key"]'}, False)])
def test_missing_management_keys_are_logged_at_the_start(
    launch: Callable[..., Process], tmp_path: Path, keys: dict[str, str], warned: bool
) -> None:
    serve = launch("--model-repository", str(tmp_path), "--host", "0.0.0.0", **keys)
    assert serve.process.wait(60) == 1
    assert ("no API keys: every client that reaches 0.0.0.0 may load and unload models" in serve.lines) == warned


def test_the_limit_on_open_files_is_raised() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1] - 1, limits[1]))
        open_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_sigterm_while_loading_ends_at_once(launch: Callable[..., Process], repository: Path) -> None:
    serve = launch("--model-repository", str(repository), "--engine", "torch", "--threads", "1")
    with httpx.Client(base_url=serve.url(), timeout=20) as client:
        assert client.get("/health/ready").status_code == 503
    serve.process.send_signal(signal.SIGTERM)
    assert serve.process.wait(30) == 0
    assert "serving" not in serve.lines


def test_an_empty_repository_ends_with_a_reason(launch: Callable[..., Process], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, reason in (("nothing", "does not exist"), ("empty", "holds no <model>/<version>/ folder")):
        serve = launch("--model-repository", str(tmp_path / name))
        assert serve.process.wait(60) == 1
        assert f"{tmp_path / name} {reason}" in serve.lines
        assert f"no model in {tmp_path / name} can be served" in serve.lines


def test_port_in_use_ends_with_a_reason(launch: Callable[..., Process], running: Running) -> None:
    serve = launch("--port", str(running.port))
    assert serve.process.wait(60) != 0
    assert "address already in use" in serve.lines.lower()
