"""A real nginx in front of a running server, with the test's own configuration."""

import socket
import subprocess
from getpass import getuser
from pathlib import Path

from tests.ports import free_port
from tests.programs import program
from tests.service.parts import until

CONFIG = """
daemon off;
user {user};
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_max_body_size 64m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream service {{ server 127.0.0.1:{upstream}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port};
    {server}
  }}
}}
"""


class Nginx:
    """nginx on a free port. ``server`` is the content of its `server` block."""

    def __init__(self, folder: Path, upstream: int, server: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "nginx.conf"
        config.write_text(
            CONFIG.format(user=getuser(), folder=folder, upstream=upstream, port=self.port, server=server)
        )
        self.process = subprocess.Popen(
            [program("nginx", "nginx-light"), "-c", str(config), "-e", str(folder / "error.log")]
        )
        until(self.listening)

    def listening(self) -> bool:
        assert self.process.poll() is None, "nginx ended"
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)
