"""Parts that the dashboards share."""

import itertools
from dataclasses import dataclass
from typing import Literal, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="$datasource")
INSTANCE = 'job=~"$job", instance=~"$instance"'
VERSION = f'{INSTANCE}, model=~"$model", version=~"$version"'


Colour = Literal["green", "yellow", "orange", "red", "blue", "text"]
Panel = TypeVar("Panel", timeseries.Panel, stat.Panel, heatmap.Panel, bargauge.Panel, table.Panel)
Built = timeseries.Panel | stat.Panel | heatmap.Panel | bargauge.Panel | table.Panel


@dataclass(frozen=True)
class Target:
    """A PromQL expression and the legend of its series. ``exemplars`` adds points for single requests."""

    expression: str
    legend: str = "__auto"
    exemplars: bool = False


def rate(metric: str, selector: str = VERSION, by: str = "") -> str:
    """Return the rate of a counter, summed over all replicas and grouped ``by`` labels."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{selector}}}[$__rate_interval]))"


def total(metric: str, selector: str = VERSION, by: str = "") -> str:
    """Return a counter since the replicas started, summed and grouped ``by`` labels."""
    grouping = f" by ({by}) " if by else ""
    return f"sum{grouping}({metric}{{{selector}}})"


def quantile(share: float, metric: str, by: str = "") -> str:
    """Return a quantile of a histogram over all replicas, grouped ``by`` labels."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', by=labels)})"


def padded(expression: str) -> str:
    """Pad the block numbers of an expression to two digits, because series are sorted as text."""
    return f"label_replace({expression}, 'block', '0$1', 'block', '(.)')"


def stat_panel(
    title: str, description: str, unit: str, target: Target, colours: builders.ThresholdsConfig
) -> stat.Panel:
    """Return a panel with one number and its recent values behind it."""
    panel = described(stat.Panel(), title, description, unit, (target,)).thresholds(colours).height(4).span(4)
    last = common.ReduceDataOptions().calcs(["lastNotNull"])
    return (
        panel.graph_mode(options.BigValueGraphMode.AREA)
        .reduce_options(last)
        .color_mode(options.BigValueColorMode.VALUE)
    )


def series_panel(title: str, description: str, unit: str, *targets: Target) -> timeseries.Panel:
    """Return a panel of lines over time, with a table of last values and means."""
    legend = (
        common.VizLegendOptions()
        .display_mode(options.LegendDisplayMode.TABLE)
        .placement(options.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "mean"])
    )
    tooltip = common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING)
    panel = described(timeseries.Panel(), title, description, unit, targets).thresholds(steps("text"))
    return panel.legend(legend).tooltip(tooltip).line_width(1).fill_opacity(8).height(9).span(12)


def bars_panel(title: str, description: str, unit: str, target: Target) -> bargauge.Panel:
    """Return a panel with a bar for the last value of each series, ordered by label."""
    panel = described(bargauge.Panel(), title, description, unit, (target,)).thresholds(steps("blue"))
    last = common.ReduceDataOptions().calcs(["lastNotNull"])
    return (
        panel.reduce_options(last)
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .orientation(options.VizOrientation.VERTICAL)
        .height(9)
        .span(12)
    )


def heatmap_panel(title: str, description: str, unit: str, metric: str, selector: str = VERSION) -> heatmap.Panel:
    """Return a panel of a histogram's buckets over time."""
    expression = f"sum by (le) (increase({metric}_bucket{{{selector}}}[$__rate_interval]))"
    panel = described(
        heatmap.Panel(), title, description, unit, (Target(expression, "{{le}}"),), PromQueryFormat.HEATMAP
    )
    colour = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32)
    return panel.thresholds(steps("text")).calculate(False).color(colour).height(9).span(12)


def table_panel(title: str, description: str, unit: str, target: Target, hide: tuple[str, ...]) -> table.Panel:
    """Return a table of the labels of each series, without the columns ``hide``."""
    panel = described(table.Panel(), title, description, unit, (target,), PromQueryFormat.TABLE, instant=True)
    columns = models.DataTransformerConfig(
        id_val="organize", options={"excludeByName": dict.fromkeys(("Time", "Value", "__name__", *hide), True)}
    )
    return panel.thresholds(steps("text")).with_transformation(columns).height(7).span(12)


def described(
    panel: Panel,
    title: str,
    description: str,
    unit: str,
    targets: tuple[Target, ...],
    form: PromQueryFormat = PromQueryFormat.TIME_SERIES,
    instant: bool = False,
) -> Panel:
    panel = panel.title(title).description(description).unit(unit).datasource(SOURCE)
    for number, target in enumerate(targets):
        query = prometheus.Dataquery().expr(target.expression).legend_format(target.legend).format(form)
        query = query.ref_id(chr(ord("A") + number)).exemplar(target.exemplars)
        panel = panel.with_target(query.instant() if instant else query.range())
    return panel


def steps(first: Colour, *others: tuple[float, Colour]) -> builders.ThresholdsConfig:
    """Return colours by value: ``first``, then each of ``others`` from its value on."""
    made = [models.Threshold(value=None, color=first)]
    made += [models.Threshold(value=value, color=colour) for value, colour in others]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def variable(name: str, label: str, expression: str) -> builders.QueryVariable:
    """Return a variable with the values of a label, all of them selected."""
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    return (
        builders.QueryVariable(name)
        .label(label)
        .query(f"label_values({expression}, {name})")
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .current(everything)
    )


VARIABLES = [
    variable("job", "Job", "skipnet_ready"),
    variable("instance", "Instance", 'skipnet_ready{job=~"$job"}'),
    variable("model", "Model", f"skipnet_model_info{{{INSTANCE}}}"),
    variable("version", "Version", f'skipnet_model_info{{{INSTANCE}, model=~"$model"}}'),
]
"""The variables that select series of the service."""


def dashboard(uid: str, title: str, description: str, variables: list[builders.QueryVariable]) -> builders.Dashboard:
    """Return an empty dashboard with its variables and links to the other dashboards."""
    source = builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
    made = (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["skipnet"])
        .time("now-30m", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            builders.DashboardLink("SkipNet")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["skipnet"])
            .keep_time(True)
        )
        .with_variable(source)
    )
    for each in variables:
        made = made.with_variable(each)
    return made


def with_rows(made: builders.Dashboard, rows: dict[str, list[Built]]) -> builders.Dashboard:
    """Add the panels of each row, with numbers that links can use."""
    numbers = itertools.count(1)
    for title, panels in rows.items():
        made = made.with_row(builders.Row(title).id(next(numbers)))
        for panel in panels:
            made = made.with_panel(panel.id(next(numbers)))
    return made
