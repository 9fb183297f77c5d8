"""Local servers in place of S3 and the Hugging Face hub, as real programs or over real sockets."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.ports import free_port
from tests.service.parts import until

ROOT = Path(__file__).parents[3]
COMMIT = "c" * 40


def moto_server() -> str:
    """Return the path of the program. Without it, skip the test, or fail in CI."""
    path = shutil.which("moto_server", path=f"{ROOT / 'build/moto/bin'}:{os.environ['PATH']}")
    if path is None:
        message = "moto_server is not installed; run `make build/moto/.installed`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


class S3:
    """moto's server in a process, with one bucket. `port` is that of a relay, which may truncate responses."""

    def __init__(self, log: Path) -> None:
        self.real_port = free_port()
        self.log = log
        self.cut = False
        self.start()
        # Requests need a user. Any user is accepted.
        user = {"authorization": "AWS id:signature"}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.real_port}", timeout=20, headers=user)
        self.client.put("/bucket").raise_for_status()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self.relay, daemon=True).start()

    def start(self) -> None:
        command = [moto_server(), "-H", "127.0.0.1", "-p", str(self.real_port)]
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        until(self.listens)

    def listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.real_port)) == 0

    def end(self) -> None:
        self.client.close()
        self.listener.close()
        self.process.kill()
        self.process.wait()

    def put(self, folder: Path, key: str) -> None:
        """Upload the files of a folder below ``key``.

        The config is the last file, because it makes a version complete.
        """
        for file in sorted(folder.iterdir(), key=lambda each: each.name == "config.json"):
            self.client.put(f"/bucket/{key}/{file.name}", content=file.read_bytes()).raise_for_status()

    def delete(self, key: str) -> None:
        for name in ("config.json", "model.safetensors"):
            self.client.delete(f"/bucket/{key}/{name}").raise_for_status()

    def relay(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # It is closed.
                return
            threading.Thread(target=self.pass_on, args=(client,), daemon=True).start()

    def pass_on(self, client: socket.socket) -> None:
        """Forward requests and responses. Truncated responses have 50,000 bytes."""
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self.real_port))
            except OSError:
                return
            with server:
                upstream = threading.Thread(target=self.pump, args=(client, server, False), daemon=True)
                upstream.start()
                self.pump(server, client, True)
                upstream.join()

    def pump(self, source: socket.socket, target: socket.socket, may_cut: bool) -> None:
        passed = 0
        try:
            while data := source.recv(10_000):
                passed += len(data)
                if may_cut and self.cut and passed > 50_000:
                    break
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Serve the files of a folder as the repository org/name of a hub, and yield its address."""

    def git_blob(data: bytes) -> str:
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()

    def described(file: Path) -> dict[str, object]:
        data = file.read_bytes()
        entry: dict[str, object] = {
            "type": "file",
            "path": str(file.relative_to(folder)),
            "size": len(data),
            "oid": git_blob(data),
        }
        if file.suffix == ".safetensors":
            checksum = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": checksum, "size": len(data), "pointerSize": 134}
        return entry

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, resolved = self.path.partition("?")[0], f"/org/name/resolve/{COMMIT}/"
            if path.startswith(resolved):
                self.respond((folder / path.removeprefix(resolved)).read_bytes())
            elif path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
                files = sorted(file for file in folder.rglob("*") if file.is_file())
                self.respond(json.dumps([described(file) for file in files]).encode())
            else:
                self.respond(json.dumps({"id": "org/name", "sha": COMMIT}).encode())

        def respond(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
