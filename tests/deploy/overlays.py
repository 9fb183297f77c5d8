"""Render the manifests with Kustomize, and validate their resources."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.deploy.parts import DEPLOY

KUBERNETES = DEPLOY / "kubernetes"
COMPONENTS = sorted(folder.name for folder in (KUBERNETES / "components").iterdir())
# `make schemas` writes them.
SCHEMAS = {file.stem: json.loads(file.read_text()) for file in (Path(__file__).parent / "schemas").glob("*.json")}
Resource = dict[str, Any]


def render(folder: Path) -> list[Resource]:
    """Return the resources of an overlay, from the Kustomize in kubectl."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def render_all_components(folder: Path) -> list[Resource]:
    """Write an overlay of the base, every component and the proxy into ``folder``, and return its resources."""
    components = [DEPLOY / "haproxy", *(KUBERNETES / "components" / name for name in COMPONENTS)]
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(KUBERNETES, folder)],
        "components": [os.path.relpath(component, folder) for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return render(folder)


def only(resources: list[Resource], kind: str) -> Resource:
    [found] = [each for each in resources if each["kind"] == kind]
    return found


def validate(resource: Resource) -> None:
    """Check a resource and the pod that KServe creates for it. Raises jsonschema.ValidationError."""
    if schema := SCHEMAS.get(resource["kind"]):
        jsonschema.Draft202012Validator(schema).validate(resource)
    else:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def pod_of(resources: list[Resource]) -> Resource:
    """Return the specification of the service's pods, from the Deployment or from KServe's two resources."""
    if deployments := [each for each in resources if each["kind"] == "Deployment"]:
        [deployment] = deployments
        pod: Resource = deployment["spec"]["template"]["spec"]
        return pod
    runtime = only(resources, "ServingRuntime")["spec"]
    predictor = only(resources, "InferenceService")["spec"]["predictor"]
    own = {"model", "minReplicas", "maxReplicas", "autoScaling", "timeout"}
    [container] = runtime["containers"]
    container = container | {"env": container["env"] + predictor["model"].get("env", [])}
    shared: Resource = {key: value for key, value in predictor.items() if key not in own}
    return shared | {"containers": [container], "volumes": runtime["volumes"]}


def service_of(pod: Resource) -> Resource:
    """Return the container that runs `skipnet serve`."""
    containers: list[Resource] = [each for each in pod["containers"] if each["args"] == ["serve"]]
    [container] = containers
    return container


def variables(container: Resource) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container.get("env", [])}
