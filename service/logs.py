"""One line per event on standard error, for people or as JSON; `extra={"fields": {…}}` adds named values."""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

PLAIN = re.compile(r"[^\s\"=]+")


def configure(level: str, style: Literal["text", "json"]) -> None:
    """Send every logger's lines through one handler, of the libraries' only warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library in ("uvicorn", "httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def named_values(record: logging.LogRecord) -> dict[str, Any]:
    values: dict[str, Any] = getattr(record, "fields", {})
    # Set in one of several workers only.
    return values if record.processName in (None, "MainProcess") else {**values, "process": record.processName}


def moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """``time level logger message name=value …``; what a client sent can't begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        values = "".join(f" {name}={quoted(value)}" for name, value in named_values(record).items())
        message = "".join(each if each.isprintable() else repr(each)[1:-1] for each in record.getMessage())
        line = f"{moment(record)} {record.levelname.lower():<7} {record.name} {message}{values}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **named_values(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def quoted(value: object) -> str:
    """Return a value as it stands, or in JSON's quotes where it has spaces, quotes or control characters."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)
