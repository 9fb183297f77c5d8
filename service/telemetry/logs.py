"""Write structured logs to standard error, one line per event.

The lines are text or JSON. `extra={"fields": {…}}` adds named values to a line.
"""

import json
import logging
import multiprocessing
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import pythonjsonlogger.json

UNQUOTED = re.compile(r"[^\s\"=]+")

FIELDS = {"asctime": "time", "levelname": "level", "name": "logger", "message": "message"}
"""The values of every line: attributes of a log record, and their names in the line."""


def configure(level: str, style: Literal["text", "json"]) -> None:
    """Send the records of every logger through one handler, those of libraries only from level warning."""
    # No line shows these values, and reading them takes as long as writing a line.
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    handler = logging.StreamHandler()
    process = multiprocessing.current_process().name
    common = {"process": process} if process.startswith("worker") else {}
    handler.setFormatter(JsonFormatter(common) if style == "json" else TextFormatter(common))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library in ("uvicorn", "httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.captureWarnings(True)


class JsonFormatter(pythonjsonlogger.json.JsonFormatter):
    """Formats a line as one JSON object with time, level, logger, message, the named values and the exception.

    ``common`` are named values of every line.
    """

    def __init__(self, common: Mapping[str, Any] | None = None) -> None:
        names = FIELDS | {"exc_info": "exception"}
        super().__init__(list(FIELDS), style=",", rename_fields=names, static_fields=common, json_default=str)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002
        """Return the time in UTC, ISO 8601 with milliseconds."""
        moment = datetime.fromtimestamp(record.created, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Return a line's fields, including the named values."""
        log_data["level"] = log_data["level"].lower()
        values: dict[str, Any] = log_data.pop("fields", {})
        return log_data | values


class TextFormatter(JsonFormatter):
    """``time level logger message name=value …``, then the exception.

    Control characters are escaped, so that no client can forge a line.
    """

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """Return a line's fields as text."""
        values = dict(log_data)
        time, level, logger, message = [str(values.pop(name)) for name in FIELDS.values()]
        exception = values.pop("exception", None)
        if not message.isprintable():
            message = "".join(each if each.isprintable() else repr(each)[1:-1] for each in message)
        named = "".join(f" {name}={quoted(value)}" for name, value in values.items())
        line = f"{time} {level:<7} {logger} {message}{named}"
        return f"{line}\n{exception}" if exception else line


def quoted(value: object) -> str:
    """Return a value as text, in JSON's quotes if it has spaces, quotes or control characters."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if UNQUOTED.fullmatch(text) and text.isprintable() else json.dumps(text)
