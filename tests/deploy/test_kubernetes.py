"""The Kubernetes base: what its schema can't tell."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.parts import DEPLOY

BASE = DEPLOY / "kubernetes"


def read(name: str) -> Any:
    return yaml.safe_load((BASE / f"{name}.yaml").read_text())


def fill(shipped: Path, volume: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the init container's script, as a pod that has ``shipped`` in its image, after a line of shell ``before``."""
    [container] = read("deployment")["spec"]["template"]["spec"]["initContainers"]
    [script] = container["args"]
    script = f"{before}\n{script}".replace("/target", str(volume)).replace("/models", str(shipped))
    return subprocess.run([*container["command"], script], capture_output=True, text=True)


def write(folder: Path, *names: str, text: str = "shipped") -> None:
    for name in names:
        (folder / name / "1").mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (folder / name / "1" / file).write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    write(tmp_path / "shipped", "a", "b", "c")
    return tmp_path / "shipped"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """An empty volume as ext4 makes it."""
    (tmp_path / "volume/lost+found").mkdir(parents=True)
    return tmp_path / "volume"


def test_settings_are_not_made_of_the_services_name() -> None:
    assert read("deployment")["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_an_empty_volume_gets_every_shipped_model(shipped: Path, volume: Path) -> None:
    assert fill(shipped, volume).returncode == 0
    assert files(volume) == files(shipped)


def test_a_volume_that_has_a_model_is_left_as_it_is(shipped: Path, volume: Path) -> None:
    write(volume, "own")
    before = files(volume)
    assert fill(shipped, volume).returncode == 0
    assert files(volume) == before


@pytest.mark.parametrize("copied", range(1, 4))
def test_what_was_interrupted_is_finished_by_the_next_pod(shipped: Path, volume: Path, copied: int) -> None:
    stop = f"""cp() {{
        count=$((${{count:-0}} + 1))
        if [ $count -lt {copied} ]; then command cp "$@"; return; fi
        mkdir -p "$3/1"; echo half > "$3/1/config.json"; kill $$
    }}"""
    assert fill(shipped, volume, stop).returncode != 0
    whole = files(shipped)
    assert {name: text for name, text in files(volume).items() if name[0] != "."}.items() < whole.items()
    assert fill(shipped, volume).returncode == 0
    assert files(volume) == whole


def test_what_came_meanwhile_is_not_overwritten(shipped: Path, volume: Path) -> None:
    write(volume, "b", text="own")
    (volume / ".filling").touch()
    assert fill(shipped, volume).returncode == 0
    assert files(volume) == files(shipped) | {"b/1/config.json": "own", "b/1/model.safetensors": "own"}


def test_of_two_pods_that_copy_at_once_the_second_keeps_the_firsts(shipped: Path, volume: Path) -> None:
    other = f'cp() {{ mkdir "{volume}/$2" && command cp -r "$2/1" "{volume}/$2"; command cp "$@"; }}'
    assert fill(shipped, volume, other).returncode == 0
    assert files(volume) == files(shipped)


def test_a_full_volume_is_no_success(shipped: Path, volume: Path) -> None:
    assert fill(shipped, volume, "cp() { return 1; }").returncode != 0
    assert fill(shipped, volume, "mv() { return 1; }").returncode != 0


def test_replicas_are_spread_over_nodes_and_a_drain_leaves_one() -> None:
    pods = read("deployment")["spec"]["template"]
    [spread] = pods["spec"]["topologySpreadConstraints"]
    budget = read("disruption")["spec"]
    selectors = [read("service")["spec"]["selector"]]
    selectors += [each["matchLabels"] for each in (spread["labelSelector"], budget["selector"])]
    assert selectors == [pods["metadata"]["labels"]] * 3
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway", "one node alone must do"
    assert budget["maxUnavailable"] < read("autoscaler")["spec"]["minReplicas"]


def test_the_base_has_every_file_but_the_maintenance_pod() -> None:
    files = {file.name for file in BASE.glob("*.yaml")} - {"kustomization.yaml", "maintenance.yaml"}
    assert set(read("kustomization")["resources"]) == files


def test_the_maintenance_pod_writes_to_the_models_and_gets_no_requests() -> None:
    pod = read("maintenance")
    [shell] = pod["spec"]["containers"]
    assert shell["volumeMounts"] == [{"name": "models", "mountPath": "/models"}]
    assert pod["spec"]["volumes"] == read("deployment")["spec"]["template"]["spec"]["volumes"][:1]
    assert not read("service")["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert "maintenance.yaml" not in read("kustomization")["resources"]
