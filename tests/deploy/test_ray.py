"""Test what Ray Serve's configuration has to agree with. `make ray` tests it on a Ray cluster."""

from typing import Any

import yaml

from service.container import MIN_CLOSE_SECONDS
from service.settings import Settings
from tests.deploy.parts import DEPLOY

CONFIG: dict[str, Any] = yaml.safe_load((DEPLOY / "ray/serve.yaml").read_text())
[APPLICATION] = CONFIG["applications"]
VARIABLES: dict[str, str] = APPLICATION["runtime_env"]["env_vars"]
PARTS = {each["name"]: each for each in APPLICATION["deployments"]}


def setting(name: str) -> float:
    return float(VARIABLES.get(f"SKIPNET_{name.upper()}", Settings.model_fields[name].default))


def test_variables_are_settings() -> None:
    assert set(VARIABLES) <= {f"SKIPNET_{field.upper()}" for field in Settings.model_fields}


def test_a_replica_has_the_time_that_its_requests_need_to_end() -> None:
    # A replica first waits for its requests, and then for what is left in its queue.
    longest = max(setting("request_timeout"), setting("drain_timeout") + MIN_CLOSE_SECONDS)
    replica = PARTS["Classifier"]["graceful_shutdown_timeout_s"]
    assert replica > longest
    # A request whose replica was killed begins again at another one.
    assert PARTS["Ingress"]["graceful_shutdown_timeout_s"] >= CONFIG["http_options"]["request_timeout_s"] > longest


def test_a_replica_has_a_full_batch_and_the_next_one() -> None:
    assert PARTS["Classifier"]["max_ongoing_requests"] == 2 * setting("max_batch_size")
    assert PARTS["Classifier"]["autoscaling_config"]["target_ongoing_requests"] == setting("max_batch_size") / 2
    assert PARTS["Classifier"]["max_ongoing_requests"] <= setting("max_queue_size")
