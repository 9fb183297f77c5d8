import json
import logging
import sys

import pytest

from service.telemetry.logs import JsonFormatter, TextFormatter, configure


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("skipnet.access", logging.INFO, "", 0, message, (), None)
    made.created = 0.25
    made.fields = fields
    return made


def test_text() -> None:
    line = TextFormatter().format(record("POST /classify 200", request_id="abc", ms=1.23456789, label="a cat"))
    assert line == (
        '1970-01-01T00:00:00.250Z info    skipnet.access POST /classify 200 request_id=abc ms=1.23457 label="a cat"'
    )


@pytest.mark.parametrize("evil", ['x"\n2026 error forged', "a=b", "\r\n", "\x1b[31m", "…\u2028", ""])
def test_text_of_a_client_cannot_begin_a_line(evil: str) -> None:
    line = TextFormatter().format(record("GET /" + evil, value=evil))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_json() -> None:
    line = json.loads(JsonFormatter().format(record("GET /\n", ms=1.5)))
    assert line == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "skipnet.access",
        "message": "GET /\n",
        "ms": 1.5,
    }


def test_exception_is_kept() -> None:
    made = record("broken")
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError: why" in TextFormatter().format(made)
    assert "ValueError: why" in json.loads(JsonFormatter().format(made))["exception"]


def test_level_and_stream(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure("warning", "json")
        logging.getLogger("skipnet.test").info("quiet")
        logging.getLogger("skipnet.test").warning("loud", extra={"fields": {"n": 1}})
        output = capsys.readouterr()
        assert output.out == ""
        assert json.loads(output.err)["message"] == "loud"
    finally:
        root.handlers[:], root.level = handlers, level
        logging.captureWarnings(False)
