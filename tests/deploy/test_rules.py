"""Test that every rule has data in live traffic, and every alert a runbook and tests of both states."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.deploy.parts import DEPLOY, RULES, Live

ROOT = DEPLOY.parent
GROUPS = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDS = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}
COMPARISONS = {"==", "!=", "<", "<=", ">", ">=", "and", "or", "unless"}


def parts(expression: Any) -> Iterator[str]:
    """Yield the operands of an alert's comparisons, which must have data even if it does not fire."""
    if isinstance(expression, promql_parser.ParenExpr):
        yield from parts(expression.expr)
    elif isinstance(expression, promql_parser.BinaryExpr) and str(expression.op) in COMPARISONS:
        yield from parts(expression.lhs)
        yield from parts(expression.rhs)
    elif isinstance(expression, promql_parser.Call) and expression.func.name == "absent":
        yield from parts(expression.args[0])
    elif not isinstance(expression, promql_parser.NumberLiteral):
        yield expression.prettify()


@pytest.mark.parametrize("name", RECORDS)
def test_a_recorded_series_has_data_and_the_labels_of_its_name(name: str, stressed: Live) -> None:
    series = stressed.prometheus.query(RECORDS[name]["expr"])
    assert series
    assert {frozenset(each["metric"]) for each in series} == {frozenset(name.split(":")[0].split("_"))}
    assert not any(each["value"][1] == "NaN" for each in series)
    assert stressed.prometheus.query(name), "not evaluated"


@pytest.mark.parametrize("name", ALERTS)
def test_the_operands_of_an_alert_have_data(name: str, stressed: Live) -> None:
    stressed.prometheus.query(ALERTS[name]["expr"])
    compared = list(parts(promql_parser.parse(ALERTS[name]["expr"])))
    assert compared
    for part in compared:
        assert stressed.prometheus.query(part), part


def test_only_alerts_that_the_test_provokes_fire(stressed: Live) -> None:
    firing = {alert["labels"]["alertname"] for alert in stressed.prometheus.ask("/alerts")["alerts"]}
    assert firing <= {"SkipNetErrorBudgetBurnsFast", "SkipNetErrorBudgetBurns", "SkipNetSaturated"} | {
        # The thresholds and images differ from those of the evaluation.
        name
        for name in ALERTS
        if "Latency" in name or "skip" in ALERTS[name]["annotations"]["runbook"]
    }


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_tested_firing_and_silent_and_has_a_runbook(name: str) -> None:
    cases = [
        case
        for file in sorted((DEPLOY / "prometheus/tests").glob("*.yml"))
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]
    assert {bool(case.get("exp_alerts")) for case in cases} == {True, False}
    assert ALERTS[name]["labels"]["severity"] in ("page", "ticket")
    page = Path(ROOT / ALERTS[name]["annotations"]["runbook"]).read_text()
    assert name in page
    assert "## Look at first" in page and "## Do" in page


def test_every_runbook_belongs_to_an_alert() -> None:
    pages = {f"docs/runbooks/{file.name}" for file in (ROOT / "docs/runbooks").glob("*.md")}
    assert pages - {"docs/runbooks/README.md"} == {rule["annotations"]["runbook"] for rule in ALERTS.values()}


def test_names_are_unique() -> None:
    names = [rule.get("alert") or rule["record"] for rule in itertools.chain(*(group["rules"] for group in GROUPS))]
    assert len(names) == len(set(names))
