"""Test what the schema of the compose files cannot check, and the documentation of their settings."""

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from service.http.keys import inference_keys
from service.settings import Settings
from tests.deploy.parts import DEPLOY, LOADER_BYTES

ROOT = DEPLOY.parent
CONFIG = DEPLOY / "haproxy/haproxy.cfg"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_settings_come_from_a_file_that_is_neither_committed_nor_copied_into_the_image() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    for name in ("service", "proxy"):
        assert SERVICES[name]["env_file"] == [{"path": f"{name}.env", "required": False}]
        assert f"/{name}.env" in (ROOT / ".gitignore").read_text().splitlines()
        assert f"!{name}.env" not in ignored


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


def test_clients_reach_the_service_through_the_proxy_only() -> None:
    service, proxy = SERVICES["service"], SERVICES["proxy"]
    assert "ports" not in service
    assert proxy["environment"]["SKIPNET_BACKEND"] == f"service:{Settings.model_fields['port'].default}"
    [published] = proxy["ports"]
    assert published.endswith(proxy["environment"]["SKIPNET_BIND"])
    [mounted] = proxy["volumes"]
    assert Path(ROOT / mounted.split(":")[0]).samefile(CONFIG)


def test_stopping_containers_have_the_time_that_their_requests_need() -> None:
    settings = SERVICES["service"]["environment"]
    pause, timeout = float(settings["SKIPNET_DRAIN_PAUSE"]), Settings.model_fields["drain_timeout"].default
    assert seconds(SERVICES["service"]["stop_grace_period"]) > pause + timeout
    config = CONFIG.read_text()
    [interval], [fall] = re.findall(r"inter (\S+) ", config), re.findall(r" fall (\d+) ", config)
    assert pause > seconds(interval) * int(fall)
    [ends] = re.findall(r"hard-stop-after (\S+)", config)
    [timeout] = re.findall(r"defaults common.*?timeout server (\S+)", config, re.DOTALL)
    assert seconds(timeout) > Settings.model_fields["request_timeout"].default
    assert seconds(SERVICES["proxy"]["stop_grace_period"]) > seconds(ends)


def test_every_variable_of_the_proxy_is_documented() -> None:
    used = set(re.findall(r"\$\{(SKIPNET_\w+)", CONFIG.read_text()))
    page = (ROOT / "docs/proxies.md").read_text()
    assert used == set(re.findall(r"^\| `(SKIPNET_\w+)` \|", page, re.MULTILINE))


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])
