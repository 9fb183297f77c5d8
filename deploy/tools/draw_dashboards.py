"""Draw the dashboards from the data of a Prometheus, for the documentation. Grafana is not needed.

python deploy/tools/draw_dashboards.py http://127.0.0.1:9090 --minutes 5 --note "what ran" --output docs/pictures

Draw them on an idle machine, because other processes distort the panels of engine time.
"""

import argparse
import json
import math
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parents[2] / "deploy/grafana/dashboards"
COLUMNS = 24
"""Width of Grafana's grid."""
UNITS = {"percentunit": (100, "%"), "s": (1000, "ms"), "bytes": (2**-20, "MiB"), "si:MAC/s": (1e-9, "GMAC/s")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prometheus")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--note", required=True)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    chosen = parser.parse_args()
    matplotlib.use("svg")
    chosen.output.mkdir(exist_ok=True)
    for file in sorted(FOLDER.glob("*.json")):
        chosen.job = "skipnet-trainer" if "training" in file.stem else "skipnet"
        draw(json.loads(file.read_text()), chosen)


def draw(board: dict[str, Any], chosen: argparse.Namespace) -> None:
    """Draw every panel at its place in Grafana's grid."""
    panels = board["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(14, rows * 0.36 + 0.5), layout="none")
    figure.suptitle(f"{board['title']}: {chosen.note}", y=1 - 0.15 / figure.get_figheight(), fontsize=9)
    for panel in panels:
        if panel["type"] == "row":
            continue
        at = panel["gridPos"]
        left, width = at["x"] / COLUMNS + 0.035, at["w"] / COLUMNS - 0.05
        bottom, height = (rows - at["y"] - at["h"]) / (rows + 1) + 0.012, (at["h"] - 1.6) / (rows + 1)
        axes = figure.add_axes((left, bottom, width, height))
        axes.set_title(panel["title"], fontsize=8, loc="left")
        axes.tick_params(labelsize=6)
        scale, unit = UNITS.get(panel["fieldConfig"]["defaults"]["unit"], (1, ""))
        series = [one for target in panel["targets"] for one in curves(target, chosen)]
        {"stat": stat, "bargauge": bars, "heatmap": heat, "table": table}.get(panel["type"], lines)(
            axes, series, scale, unit
        )
        if not series and panel["type"] != "stat":
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="grey")
    figure.savefig(chosen.output / f"{board['uid']}.png", dpi=90)
    plt.close(figure)


def curves(target: dict[str, Any], chosen: argparse.Namespace) -> list[tuple[str, dict[str, str], list[list[float]]]]:
    """Return name, labels and points [seconds, value] of each series of a panel's target."""
    expression = target["expr"].replace("$__rate_interval", "30s").replace("$price", "0.10")
    expression = expression.replace('"$job"', f'"{chosen.job}"')
    for variable in ("instance", "model", "version", "architecture"):
        expression = expression.replace(f'"${variable}"', '".*"')
    end = time.time()
    query = {"query": expression, "start": end - 60 * chosen.minutes, "end": end, "step": 2}
    with urllib.request.urlopen(f"{chosen.prometheus}/api/v1/query_range?{urllib.parse.urlencode(query)}") as response:
        result = json.load(response)["data"]["result"]
    made = []
    for one in result:
        name = target["legendFormat"].replace("__auto", "")
        for label, value in one["metric"].items():
            name = name.replace("{{" + label + "}}", value)
        points = [[at - end, float(value)] for at, value in one["values"]]
        made.append((name, one["metric"], [point for point in points if not math.isnan(point[1])]))
    return [one for one in made if one[2]]


def stat(axes: Any, series: list[Any], scale: float, unit: str) -> None:
    axes.axis("off")
    text = "  ".join(f"{points[-1][1] * scale:.4g} {unit}" for _, _, points in series) or "no data"
    axes.text(0, 0.4, text, fontsize=15)


def lines(axes: Any, series: list[Any], scale: float, unit: str) -> None:
    for name, _, points in series:
        axes.plot([at for at, _ in points], [value * scale for _, value in points], linewidth=0.9, label=name)
    axes.set_ylabel(unit, fontsize=6)
    axes.grid(alpha=0.2)
    if series:
        axes.legend(fontsize=5, loc="upper left", ncols=math.ceil(len(series) / 6), framealpha=0.6)
        axes.margins(y=0.3)


def bars(axes: Any, series: list[Any], scale: float, unit: str) -> None:
    axes.bar([name for name, _, _ in series], [points[-1][1] * scale for _, _, points in series])
    axes.set_ylabel(unit, fontsize=6)


def heat(axes: Any, series: list[Any], scale: float, unit: str) -> None:
    """Draw the images in each bucket from cumulative buckets."""
    del scale, unit
    buckets = sorted(series, key=lambda one: float(one[1]["le"]))
    times = sorted({at for _, _, points in buckets for at, _ in points})
    below = dict.fromkeys(times, 0.0)
    grid = []
    for _, _, points in buckets:
        counts = dict(points)
        grid.append([max(0, counts.get(at, 0) - below[at]) for at in times])
        below = {at: counts.get(at, 0) for at in times}
    used = [number for number, row in enumerate(grid) if any(row)]
    if used:
        first, last = min(used), max(used)
        axes.imshow(grid[first : last + 1], aspect="auto", origin="lower", cmap="Blues")
        axes.set_yticks(range(last - first + 1), [buckets[i][1]["le"] for i in range(first, last + 1)], fontsize=5)
        axes.set_xticks([])


def table(axes: Any, series: list[Any], scale: float, unit: str) -> None:
    del scale, unit
    axes.axis("off")
    hidden = {"__name__", "job"}
    for number, (_, labels, _) in enumerate(series):
        text = "\n".join(f"{key}={value}" for key, value in sorted(labels.items()) if key not in hidden)
        axes.text(0.3 * number, 0.4, text, fontsize=7)


if __name__ == "__main__":
    main()
