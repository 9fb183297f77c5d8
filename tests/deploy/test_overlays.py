"""Test the overlays of the Kubernetes manifests: schemas, names that have to agree, the times of a drain, scaling."""

import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.tools import prometheus_rules
from service.app import create_app
from service.container import MIN_CLOSE_SECONDS
from service.server import GRACE_SECONDS
from service.settings import Settings
from tests.deploy.overlays import (
    KUBERNETES,
    Resource,
    only,
    pod_of,
    render,
    render_all_components,
    service_of,
    validate,
    variables,
)
from tests.deploy.parts import DEPLOY
from tests.programs import program

OVERLAYS = ("base", "production", "components", "kserve")


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Resource]]:
    folders = {"base": KUBERNETES, "production": KUBERNETES / "production", "kserve": KUBERNETES / "kserve"}
    every = render_all_components(tmp_path_factory.mktemp("components"))
    return {name: render(folder) for name, folder in folders.items()} | {"components": every}


@pytest.mark.parametrize("name", OVERLAYS)
def test_resources_follow_their_schemas(name: str, overlays: dict[str, list[Resource]]) -> None:
    for resource in overlays[name]:
        validate(resource)
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod_of(overlays[name])})


@pytest.mark.parametrize("name", ["maintenance", "training"])
def test_manifests_that_are_applied_by_hand_follow_their_schemas(name: str) -> None:
    validate(yaml.safe_load((KUBERNETES / f"{name}.yaml").read_text()))


@pytest.mark.parametrize(
    ("overlay", "kind", "path", "value"),
    [
        ("production", "ScaledObject", ("spec", "minReplicas"), 2),
        ("production", "ScaledObject", ("spec", "triggers", 0, "metadata", "threshold"), 16),
        ("production", "PrometheusRule", ("spec", "groups", 0, "rules", 0, "expression"), "up"),
        ("production", "NetworkPolicy", ("spec", "ingress", 0, "form"), []),
        ("base", "PodMonitor", ("spec", "podMetricsEndpoints", 0, "interval"), "5 s"),
        ("kserve", "ServingRuntime", ("spec", "protocolVersions"), "v2"),
        ("kserve", "InferenceService", ("spec", "predictor", "model", "storageURI"), "pvc://models"),
        ("kserve", "InferenceService", ("spec", "predictor", "autoScaling", "metrics", 0, "external", "metrics"), {}),
    ],
)
def test_the_schemas_refuse_mistakes(
    overlay: str, kind: str, path: tuple[Any, ...], value: object, overlays: dict[str, list[Resource]]
) -> None:
    resource = yaml.safe_load(yaml.safe_dump(only(overlays[overlay], kind)))
    place = resource
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(resource)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_has_the_time_that_its_requests_need_to_end(name: str, overlays: dict[str, list[Resource]]) -> None:
    pod = pod_of(overlays[name])
    service = service_of(pod)
    settings = variables(service)
    pause = float(settings["SKIPNET_DRAIN_PAUSE"])
    timeout = float(settings.get("SKIPNET_DRAIN_TIMEOUT", Settings.model_fields["drain_timeout"].default))
    longest = float(settings.get("SKIPNET_REQUEST_TIMEOUT", Settings.model_fields["request_timeout"].default))
    hook = service.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    ends = hook + pause + timeout + GRACE_SECONDS + MIN_CLOSE_SECONDS
    assert ends < pod["terminationGracePeriodSeconds"]
    assert timeout >= longest, "the service would end before an admitted request has"
    for proxy in (each for each in pod.get("initContainers", []) if each["name"] == "proxy"):
        [*_, script] = proxy["lifecycle"]["preStop"]["exec"]["command"]
        [(waits, signal)] = re.findall(r"sleep (\d+); kill -(\w+) 1", script)
        # Other pods get new connections by then, and the open ones are closed while the service still responds.
        assert 0 < float(waits) < hook + pause
        assert signal == "USR1", "the signal by which HAProxy ends without closing connections that it serves"
    for resource in overlays[name]:
        annotations = resource["metadata"].get("annotations", {})
        if timeout_server := annotations.get("haproxy.org/timeout-server"):
            assert float(timeout_server.removesuffix("s")) > longest
        if resource["kind"] == "InferenceService":
            assert resource["spec"]["predictor"]["timeout"] > longest


@pytest.mark.parametrize("name", OVERLAYS)
def test_variables_of_the_service_are_settings(name: str, overlays: dict[str, list[Resource]]) -> None:
    pod = pod_of(overlays[name])
    known = {f"SKIPNET_{field.upper()}" for field in Settings.model_fields}
    assert set(variables(service_of(pod))) <= known
    assert pod["enableServiceLinks"] is False, "Kubernetes would set SKIPNET_PORT"


@pytest.mark.parametrize("name", OVERLAYS)
def test_one_autoscaler_keeps_two_to_ten_replicas(name: str, overlays: dict[str, list[Resource]]) -> None:
    limits = [
        (spec.get("minReplicas", spec.get("minReplicaCount")), spec.get("maxReplicas", spec.get("maxReplicaCount")))
        for each in overlays[name]
        for spec in (each.get("spec", {}), each.get("spec", {}).get("predictor", {}))
        if {"maxReplicas", "maxReplicaCount"} & set(spec)
    ]
    assert limits == [(2, 10)]


def test_traffic_reaches_a_port_of_the_pods_that_the_policy_opens(overlays: dict[str, list[Resource]]) -> None:
    for name, port in (("production", "http"), ("components", "proxy")):
        resources, pod = overlays[name], pod_of(overlays[name])
        [rule] = only(resources, "Ingress")["spec"]["rules"]
        backend = rule["http"]["paths"][0]["backend"]["service"]
        service = only(resources, "Service")
        assert backend["name"] == service["metadata"]["name"]
        [forwarded] = [each for each in service["spec"]["ports"] if each["name"] == backend["port"]["name"]]
        assert forwarded["targetPort"] == port
        containers = [*pod["containers"], *pod["initContainers"]]
        ports = {each["name"] for container in containers for each in container.get("ports", [])}
        policy = only(resources, "NetworkPolicy")["spec"]
        labels = only(resources, "Deployment")["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"] == service["spec"]["selector"] == labels
        clients, scrapes = ({each["port"] for each in rule["ports"]} for rule in policy["ingress"])
        assert port in clients & ports
        monitored = {each["port"] for each in only(resources, "PodMonitor")["spec"]["podMetricsEndpoints"]}
        assert monitored <= scrapes & ports
    [tls] = only(overlays["production"], "Ingress")["spec"]["tls"]
    assert tls["hosts"] == [only(overlays["production"], "Ingress")["spec"]["rules"][0]["host"]]


def test_a_gpu_is_requested_and_used(overlays: dict[str, list[Resource]]) -> None:
    service = service_of(pod_of(overlays["components"]))
    assert service["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert variables(service)["SKIPNET_DEVICE"] == "cuda"
    assert variables(service)["SKIPNET_DRAIN_PAUSE"], "the component keeps the other variables"


def test_the_rules_are_those_of_prometheus() -> None:
    assert prometheus_rules.FILE.read_text() == prometheus_rules.written(), "run `make rules`"


def test_kserve_finds_container_port_protocol_and_models(overlays: dict[str, list[Resource]]) -> None:
    runtime = only(overlays["kserve"], "ServingRuntime")
    model = only(overlays["kserve"], "InferenceService")["spec"]["predictor"]["model"]
    [container] = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    settings, [port] = variables(container), container["ports"]
    assert settings["SKIPNET_MODEL_REPOSITORY"] == "/mnt/models"
    assert int(settings["SKIPNET_PORT"]) == port["containerPort"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["modelFormat"] in [
        {key: each[key] for key in ("name", "version")} for each in runtime["spec"]["supportedModelFormats"]
    ]
    assert re.match(r"(pvc|s3|gs|hf)://", model["storageUri"])
    served = set(create_app(Settings()).openapi()["paths"])
    probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert {probe["path"] for probe in probes} <= served
    assert {probe["port"] for probe in probes} == {port["containerPort"]}
    monitor = only(overlays["kserve"], "PodMonitor")["spec"]
    assert [each["port"] for each in monitor["podMetricsEndpoints"]] == [port["name"]]
    assert runtime["spec"]["labels"].items() <= monitor["selector"]["matchLabels"].items()


def test_kserve_scales_by_the_queries_of_keda(overlays: dict[str, list[Resource]]) -> None:
    triggers = [each["metadata"] for each in only(overlays["production"], "ScaledObject")["spec"]["triggers"]]
    metrics = only(overlays["kserve"], "InferenceService")["spec"]["predictor"]["autoScaling"]["metrics"]
    assert [(each["query"], each["serverAddress"], each["threshold"]) for each in triggers] == [
        (
            each["external"]["metric"]["query"],
            each["external"]["metric"]["serverAddress"],
            each["external"]["target"]["value"],
        )
        for each in metrics
    ]


def test_the_queries_count_waiting_images_and_never_return_nan(
    overlays: dict[str, list[Resource]], tmp_path: Path
) -> None:
    queue, latency = (
        each["metadata"]["query"] for each in only(overlays["production"], "ScaledObject")["spec"]["triggers"]
    )
    bucket = 'skipnet_stage_duration_seconds_bucket{job="skipnet", instance="%s", stage="queue", le="%s"}'
    service = {
        'skipnet_images_in_flight{job="skipnet", instance="a"}': "20x10",
        'skipnet_images_in_flight{job="skipnet", instance="b"}': "10x10",
        'up{job="skipnet", instance="a"}': "1x10",
        'up{job="skipnet", instance="b"}': "1x10",
        'up{job="skipnet", instance="c"}': "0x10",
    }
    idle = {bucket % ("a", le): "7x10" for le in ("0.05", "0.1", "+Inf")}
    # Every image waits between 0.05 and 0.1 s. The quantile is interpolated: 0.05 + 0.99 * 0.05.
    busy = {bucket % ("a", "0.05"): "0x10"} | {bucket % ("a", le): "0+60x10" for le in ("0.1", "+Inf")}
    proxy = {'haproxy_backend_current_queue{job="skipnet-proxy", proxy="images", instance="a"}': "5x10"}
    cases: list[tuple[dict[str, str], float | None, float | None]] = [
        (service | busy, 30, 2 * 0.0995),
        (service | busy | proxy, 35, 2 * 0.0995),
        (service | idle, 30, 0),
        # KEDA leaves the number of replicas as it is if a query has no result.
        (idle, None, None),
    ]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f"round({query}, 1e-6)",
                    "eval_time": "5m",
                    "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
                }
                for query, value in ((queue, waiting), (latency, seconds))
            ],
        }
        for series, waiting, seconds in cases
    ]
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run(
        [program("promtool", "prometheus"), "test", "rules", str(tmp_path / "tests.yml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_proxy_and_the_ingress_bound_a_replica_alike(overlays: dict[str, list[Resource]]) -> None:
    annotations = only(overlays["production"], "Ingress")["metadata"]["annotations"]
    config = (DEPLOY / "haproxy/haproxy.cfg").read_text()
    assert f'"${{SKIPNET_MAX_REQUESTS-{annotations["haproxy.org/pod-maxconn"]}}}"' in config
    assert f'"${{SKIPNET_QUEUE_TIMEOUT-{annotations["haproxy.org/timeout-queue"]}}}"' in config
