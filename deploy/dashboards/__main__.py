from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards import dashboards

FOLDER = Path(__file__).parents[1] / "grafana/dashboards"


def main() -> None:
    for dashboard in dashboards():
        (FOLDER / f"{dashboard.uid}.json").write_text(JSONEncoder(sort_keys=True, indent=2).encode(dashboard) + "\n")


if __name__ == "__main__":
    main()
