"""Test what the schema of the Kubernetes manifests cannot check."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.parts import DEPLOY, LOADER_BYTES

KUBERNETES = DEPLOY / "kubernetes"
BASE = KUBERNETES / "base"


def read(name: str) -> Any:
    folder = KUBERNETES if name in ("maintenance", "training") else BASE
    return yaml.safe_load((folder / f"{name}.yaml").read_text())


def fill(shipped: Path, volume: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script of the init container on an image with the models ``shipped``, after the shell line ``before``."""
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
    """An empty volume, with the folder that ext4 creates."""
    (tmp_path / "volume/lost+found").mkdir(parents=True)
    return tmp_path / "volume"


def test_kubernetes_sets_no_variables_for_services() -> None:
    assert read("deployment")["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_an_empty_volume_gets_every_shipped_model(shipped: Path, volume: Path) -> None:
    assert fill(shipped, volume).returncode == 0
    assert files(volume) == files(shipped)


def test_a_volume_with_a_model_is_not_changed(shipped: Path, volume: Path) -> None:
    write(volume, "own")
    before = files(volume)
    assert fill(shipped, volume).returncode == 0
    assert files(volume) == before


@pytest.mark.parametrize("copied", range(1, 4))
def test_the_next_pod_finishes_an_interrupted_copy(shipped: Path, volume: Path, copied: int) -> None:
    stop = f"""cp() {{
        count=$((${{count:-0}} + 1))
        if [ $count -lt {copied} ]; then command cp "$@"; return; fi
        mkdir -p "$3/1"; echo half > "$3/1/config.json"; kill $$
    }}"""
    assert fill(shipped, volume, stop).returncode != 0
    complete = files(shipped)
    assert {name: text for name, text in files(volume).items() if name[0] != "."}.items() < complete.items()
    assert fill(shipped, volume).returncode == 0
    assert files(volume) == complete


def test_models_that_were_added_meanwhile_are_not_overwritten(shipped: Path, volume: Path) -> None:
    write(volume, "b", text="own")
    (volume / ".filling").touch()
    assert fill(shipped, volume).returncode == 0
    assert files(volume) == files(shipped) | {"b/1/config.json": "own", "b/1/model.safetensors": "own"}


def test_a_second_pod_keeps_what_the_first_copied(shipped: Path, volume: Path) -> None:
    other = f'cp() {{ mkdir "{volume}/$2" && command cp -r "$2/1" "{volume}/$2"; command cp "$@"; }}'
    assert fill(shipped, volume, other).returncode == 0
    assert files(volume) == files(shipped)


def test_a_full_volume_fails(shipped: Path, volume: Path) -> None:
    assert fill(shipped, volume, "cp() { return 1; }").returncode != 0
    assert fill(shipped, volume, "mv() { return 1; }").returncode != 0


def test_replicas_run_on_different_nodes_and_a_drain_leaves_one() -> None:
    pods = read("deployment")["spec"]["template"]
    [spread] = pods["spec"]["topologySpreadConstraints"]
    budget = read("disruption")["spec"]
    selectors = [read("service")["spec"]["selector"]]
    selectors += [each["matchLabels"] for each in (spread["labelSelector"], budget["selector"])]
    assert selectors == [pods["metadata"]["labels"]] * 3
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway", "a single node must be enough"
    assert budget["maxUnavailable"] < read("autoscaler")["spec"]["minReplicas"]


def test_the_base_has_every_file() -> None:
    files = {file.name for file in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(read("kustomization")["resources"]) == files


def test_the_maintenance_pod_writes_to_the_models_and_gets_no_requests() -> None:
    pod = read("maintenance")
    [shell] = pod["spec"]["containers"]
    assert shell["volumeMounts"] == [{"name": "models", "mountPath": "/models"}]
    assert pod["spec"]["volumes"] == read("deployment")["spec"]["template"]["spec"]["volumes"][:1]
    assert not read("service")["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_the_training_job_writes_to_the_models_and_has_shared_memory_for_the_batches_of_its_loader() -> None:
    pod = read("training")["spec"]["template"]["spec"]
    [trainer] = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in trainer["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/models"]] == read("deployment")["spec"]["template"]["spec"]["volumes"][0]
    shared = volumes[mounts["/dev/shm"]]["emptyDir"]
    assert shared["medium"] == "Memory"
    assert int(shared["sizeLimit"].removesuffix("Gi")) << 30 >= LOADER_BYTES
    assert not read("service")["spec"]["selector"].items() <= read("training")["metadata"]["labels"].items()


def test_the_service_points_to_the_proxy_which_is_a_sidecar() -> None:
    folder = DEPLOY / "haproxy"
    component = yaml.safe_load((folder / "kustomization.yaml").read_text())
    pod = yaml.safe_load((folder / "sidecar.yaml").read_text())["spec"]["template"]["spec"]
    [proxy], [service] = pod["initContainers"], read("deployment")["spec"]["template"]["spec"]["containers"]
    # As a sidecar it ends after the service, which can send its last responses through it.
    assert proxy["restartPolicy"] == "Always"
    variables = {each["name"]: each["value"] for each in proxy["env"]}
    assert set(variables) <= set(re.findall(r"\${(SKIPNET_\w+)", (folder / "haproxy.cfg").read_text()))
    assert variables["SKIPNET_BACKEND"] == f"127.0.0.1:{service['ports'][0]['containerPort']}"
    ports = {each["name"]: f":{each['containerPort']}" for each in proxy["ports"]}
    assert variables["SKIPNET_BIND"] == ports["proxy"]
    patches = {
        each["target"]["kind"]: yaml.safe_load(each["patch"]) for each in component["patches"] if "patch" in each
    }
    assert patches["Service"][0]["value"] == "proxy"
    assert patches["PodMonitor"][0]["value"]["port"] in ports
    [volume] = pod["volumes"]
    assert volume["configMap"]["name"] == component["configMapGenerator"][0]["name"]
    assert proxy["volumeMounts"][0]["name"] == volume["name"]
