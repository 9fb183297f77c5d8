"""Test what the schema of the compose files cannot check, and the documentation of their settings."""

import re
from io import StringIO
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from service.http.keys import inference_keys
from service.settings import Settings
from tests.deploy.parts import DEPLOY, LOADER_BYTES

ROOT = DEPLOY.parent
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_settings_come_from_a_file_that_is_neither_committed_nor_copied_into_the_image() -> None:
    assert SERVICES["service"]["env_file"] == [{"path": "service.env", "required": False}]
    assert "/service.env" in (ROOT / ".gitignore").read_text().splitlines()
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*" and "!service.env" not in ignored


def test_the_documented_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/operating.md").read_text()
    [example] = re.findall(r"^    SKIPNET_API_KEYS=.*(?:\n    SKIPNET_.*)*", page, re.MULTILINE)
    shown = dotenv_values(stream=StringIO(re.sub(r"(?m)^    ", "", example)))
    assert set(shown) <= {f"SKIPNET_{name.upper()}" for name in Settings.model_fields}
    assert not set(shown) & set(SERVICES["service"]["environment"]), "the compose file overrides this setting"
    for name, value in shown.items():
        monkeypatch.setenv(name, value or "")
    assert inference_keys(Settings()).keys == [b"KEY", b"ANOTHER"]


@pytest.mark.parametrize("name", SERVICES)
def test_logs_are_bounded(name: str) -> None:
    logging = SERVICES[name]["logging"]
    # Docker's driver local keeps five files of 20 MB by default, json-file one file without limit.
    assert logging["driver"] == "local"
    assert {"max-size", "max-file"} == set(logging["options"])


def test_the_trainer_has_shared_memory_for_the_batches_of_its_loader() -> None:
    match = re.fullmatch(r"(\d+)gb", SERVICES["trainer"]["shm_size"])
    assert match
    assert int(match[1]) << 30 >= LOADER_BYTES
