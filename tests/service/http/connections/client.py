"""A client that sends the bytes of a test and reads one response at a time."""

import json
import re
import socket

from tests.service.parts import encoded, picture

BODY = encoded(picture(0))


def ask(path: str = "/classify", body: bytes = BODY, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection:
    """A connection that reads responses one by one."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> str:
        lines: list[bytes] = []
        while (line := self.file.readline()) != b"\r\n":
            assert line, "the connection ended before a response did"
            lines.append(line)
        return b"".join(lines).decode()

    def response(self) -> tuple[int, dict[str, str], dict[str, object]]:
        head = self.head()
        headers = {name.lower(): value for name, value in re.findall(r"^(\S+): (.*)\r$", head, re.M)}
        return int(head.split()[1]), headers, json.loads(self.file.read(int(headers["content-length"])))

    def ended(self) -> bool:
        return self.file.read(1) == b""

    def close(self) -> None:
        self.file.close()
        self.socket.close()
