"""Test that every panel is built from the code, has a description, and shows data of real traffic."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from deploy.dashboards import dashboards
from deploy.dashboards.__main__ import FOLDER, written
from service.telemetry import gpu
from tests.deploy.parts import Live, filled

BOARDS = {board["uid"]: board for board in (json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json")))}
PANELS = [
    pytest.param(panel, id=f"{uid}: {panel['title']}")
    for uid, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]
SINCE_START = "since start"


def test_the_committed_json_equals_the_output_of_the_code() -> None:
    built = {dashboard.uid: written(dashboard) for dashboard in dashboards()}
    assert {file.stem: file.read_text() for file in FOLDER.glob("*.json")} == built, "python -m deploy.dashboards"


@pytest.mark.parametrize("panel", PANELS)
def test_every_expression_gives_data(panel: dict[str, Any], stressed: Live) -> None:
    if panel["title"].startswith("GPU") and not stressed.prometheus.query("skipnet_gpu_memory_bytes"):
        # Without an NVIDIA GPU they show nothing instead of a wrong zero.
        assert [stressed.prometheus.query(filled(target["expr"])) for target in panel["targets"]] == [[]] * len(
            panel["targets"]
        )
        return
    for target in panel["targets"]:
        expression = filled(target["expr"])
        assert "$" not in expression.replace("'0$1'", ""), expression
        series = stressed.prometheus.query(expression)
        assert series, expression
        assert any(each["value"][1] != "NaN" for each in series), expression
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert all(each["metric"].get(label) for each in series), (label, expression)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_a_description_and_uses_the_variables(panel: dict[str, Any]) -> None:
    assert panel["title"] and panel["description"].endswith(".")
    assert panel["datasource"]["uid"] == "$datasource"
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    # Grafana's default is red from 80 on, for every unit.
    assert defaults["thresholds"]["steps"] and 80 not in [step["value"] for step in defaults["thresholds"]["steps"]]
    for target in panel["targets"]:
        promql_parser.parse(filled(target["expr"]))
        selectors = re.findall(r"\w+{([^}]*)}", target["expr"])
        assert selectors and all('job=~"$job"' in each and 'instance=~"$instance"' in each for each in selectors)
        windows = re.findall(r"\[([^\]]+)\]", target["expr"])
        assert set(windows) <= {"$__rate_interval", "1h"}
        if SINCE_START not in panel["title"]:
            counters = re.findall(r"(\w+)\(\w+_(?:total|bucket|count|sum){", target["expr"])
            assert len(counters) == len(re.findall(r"_(?:total|bucket|count|sum){", target["expr"]))
            assert set(counters) <= {"rate", "increase"}


def test_savings_panels_show_the_sums_of_the_responses(live: Live) -> None:
    panels = {panel["title"]: panel for panel in BOARDS["skipnet-savings"]["panels"]}

    def shown(title: str) -> float:
        return live.then(filled(panels[title]["targets"][0]["expr"]))

    saved = 1 - live.executed / live.dense
    assert shown("MACs saved since start") == pytest.approx(saved, rel=1e-9)
    assert shown("MACs saved now") == pytest.approx(saved, rel=0.2)
    assert shown("Money saved since start") == pytest.approx(shown("Engine time saved since start") / 36000)


def test_gpu_panels_use_metrics_that_are_read_from_nvml() -> None:
    source = Path(gpu.__file__).read_text()
    named = {
        name
        for board in BOARDS.values()
        for panel in board["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"skipnet_gpu_\w+", target["expr"])
    }
    assert named
    assert named == {name for name in named if f'"{name.removesuffix("_total")}"' in source}


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_has_variables_and_is_read_only(board: dict[str, Any]) -> None:
    assert board["editable"] is False
    variables = [variable["name"] for variable in board["templating"]["list"]]
    assert variables[:3] == ["datasource", "job", "instance"]
    identifiers = [panel["id"] for panel in board["panels"]]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_variables_have_values(board: dict[str, Any], stressed: Live) -> None:
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert found
            assert all(found[2] in each["metric"] for each in stressed.prometheus.query(filled(found[1]))), found[0]
            assert stressed.prometheus.query(filled(found[1])), found[0]
