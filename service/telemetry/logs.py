"""One line per event on standard error, for people or as JSON; `extra={"fields": {…}}` adds named values."""

import json
import logging
import multiprocessing
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

PLAIN = re.compile(r"[^\s\"=]+")


def configure(level: str, style: Literal["text", "json"]) -> None:
    """Send every logger's lines through one handler, of the libraries' only warnings."""
    # What no line says, and what would cost every line as much as writing it.
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    handler = logging.StreamHandler()
    process = multiprocessing.current_process().name
    # Of one among several workers only.
    common = {"process": process} if process.startswith("worker") else {}
    handler.setFormatter(JsonFormatter(common) if style == "json" else TextFormatter(common))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library in ("uvicorn", "httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.captureWarnings(True)


class Formatter(logging.Formatter):
    """What lines of either kind hold beside their message; ``common`` is in every one."""

    def __init__(self, common: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.common = dict(common or {})

    def named_values(self, record: logging.LogRecord) -> dict[str, Any]:
        values: dict[str, Any] = getattr(record, "fields", {})
        return values | self.common


def moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(Formatter):
    """``time level logger message name=value …``; what a client sent can't begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        values = "".join(f" {name}={quoted(value)}" for name, value in self.named_values(record).items())
        message = "".join(each if each.isprintable() else repr(each)[1:-1] for each in record.getMessage())
        line = f"{moment(record)} {record.levelname.lower():<7} {record.name} {message}{values}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.named_values(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def quoted(value: object) -> str:
    """Return a value as it stands, or in JSON's quotes where it has spaces, quotes or control characters."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)
