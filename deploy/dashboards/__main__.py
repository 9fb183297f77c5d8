from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards import dashboards

FOLDER = Path(__file__).parents[1] / "grafana/dashboards"


def written(dashboard: Dashboard) -> str:
    """Return the JSON text of a dashboard."""
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard) + "\n"


if __name__ == "__main__":
    for each in dashboards():
        (FOLDER / f"{each.uid}.json").write_text(written(each))
