"""Grafana dashboards as code. ``python -m deploy.dashboards`` writes deploy/grafana/dashboards/*.json."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards import proxy, savings, service, training


def dashboards() -> list[Dashboard]:
    return [module.board().build() for module in (savings, service, proxy, training)]
