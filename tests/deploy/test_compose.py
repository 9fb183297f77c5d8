"""The compose files and what the documentation says of them: what their schema can't tell."""

import re
from io import StringIO
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from service.http.keys import inference_keys
from service.settings import Settings
from tests.deploy.parts import DEPLOY

ROOT = DEPLOY.parent
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_settings_come_from_a_file_that_stays_here() -> None:
    assert SERVICES["service"]["env_file"] == [{"path": "service.env", "required": False}]
    assert "/service.env" in (ROOT / ".gitignore").read_text().splitlines()
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*" and "!service.env" not in ignored


def test_the_settings_that_the_documentation_shows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/operating.md").read_text()
    [example] = re.findall(r"^    SKIPNET_API_KEYS=.*(?:\n    SKIPNET_.*)*", page, re.MULTILINE)
    shown = dotenv_values(stream=StringIO(re.sub(r"(?m)^    ", "", example)))
    assert set(shown) <= {f"SKIPNET_{name.upper()}" for name in Settings.model_fields}
    assert not set(shown) & set(SERVICES["service"]["environment"]), "what the compose file sets can't be set there"
    for name, value in shown.items():
        monkeypatch.setenv(name, value or "")
    assert inference_keys(Settings()).keys == [b"KEY", b"ANOTHER"]


@pytest.mark.parametrize("name", SERVICES)
def test_logs_do_not_grow_without_bound(name: str) -> None:
    logging = SERVICES[name]["logging"]
    # Docker's local driver keeps five files of 20 MB by itself, json-file one without end.
    assert logging["driver"] == "local"
    assert {"max-size", "max-file"} == set(logging["options"])
