"""Write the rules of deploy/prometheus as a resource of the Prometheus operator: `make rules`."""

from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[1]
FILE = DEPLOY / "kubernetes/components/rules/rules.yaml"


def written() -> str:
    """Return the text of the PrometheusRule."""
    files = sorted((DEPLOY / "prometheus/rules").glob("*.yml"))
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "skipnet", "labels": {"app.kubernetes.io/name": "skipnet"}},
        "spec": {"groups": [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]},
    }
    head = "# Written by `make rules` from deploy/prometheus/rules.\n"
    return head + yaml.safe_dump(resource, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    FILE.write_text(written())
