"""What our panels share: data source, selectors, legends. A panel is its title, what it means, a unit and targets."""

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
    """An expression and how its series are called; ``exemplars`` shows single requests beside them."""

    expression: str
    legend: str = "__auto"
    exemplars: bool = False


def rate(metric: str, selector: str = VERSION, by: str = "") -> str:
    """Return a counter's sum per second over all replicas, in groups ``by``."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{selector}}}[$__rate_interval]))"


def total(metric: str, selector: str = VERSION, by: str = "") -> str:
    """Return what a counter has come to since the replicas started, in groups ``by``."""
    grouping = f" by ({by}) " if by else ""
    return f"sum{grouping}({metric}{{{selector}}})"


def quantile(share: float, metric: str, by: str = "") -> str:
    """Return a quantile of a histogram over all replicas, in groups ``by``."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', by=labels)})"


def padded(expression: str) -> str:
    """Return an expression whose block numbers have two digits, because series are sorted as text."""
    return f"label_replace({expression}, 'block', '0$1', 'block', '(.)')"


def stat_panel(
    title: str, description: str, unit: str, target: Target, colours: builders.ThresholdsConfig
) -> stat.Panel:
    """Return one number with its recent course behind it."""
    panel = described(stat.Panel(), title, description, unit, (target,)).thresholds(colours).height(4).span(4)
    last = common.ReduceDataOptions().calcs(["lastNotNull"])
    return (
        panel.graph_mode(options.BigValueGraphMode.AREA)
        .reduce_options(last)
        .color_mode(options.BigValueColorMode.VALUE)
    )


def series_panel(title: str, description: str, unit: str, *targets: Target) -> timeseries.Panel:
    """Return lines over time, with their last value and mean in a table below."""
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
    """Return the last value of each series as a bar, in the order of their labels."""
    panel = described(bargauge.Panel(), title, description, unit, (target,)).thresholds(steps("blue"))
    last = common.ReduceDataOptions().calcs(["lastNotNull"])
    return (
        panel.reduce_options(last)
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .orientation(options.VizOrientation.VERTICAL)
        .height(9)
        .span(12)
    )


def heatmap_panel(title: str, description: str, unit: str, metric: str) -> heatmap.Panel:
    """Return how a histogram's values were spread over its buckets, over time."""
    expression = f"sum by (le) (increase({metric}_bucket{{{VERSION}}}[$__rate_interval]))"
    panel = described(
        heatmap.Panel(), title, description, unit, (Target(expression, "{{le}}"),), PromQueryFormat.HEATMAP
    )
    colour = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32)
    return panel.thresholds(steps("text")).calculate(False).color(colour).height(9).span(12)


def table_panel(title: str, description: str, unit: str, target: Target, hide: tuple[str, ...]) -> table.Panel:
    """Return the labels of each series as a row, without the columns ``hide``."""
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
    """Return colours by value: ``first`` below all of ``others``, which are the values where another one begins."""
    made = [models.Threshold(value=None, color=first)]
    made += [models.Threshold(value=value, color=colour) for value, colour in others]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def variable(name: str, label: str, expression: str) -> builders.QueryVariable:
    """Return a variable of a label's values, all of them chosen at first."""
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
"""What the service's series are chosen by."""


def dashboard(uid: str, title: str, description: str, variables: list[builders.QueryVariable]) -> builders.Dashboard:
    """Return an empty dashboard with the data source and ``variables`` to choose, and links to its siblings."""
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
    """Add panels under the titles of their rows, numbered for links to single ones."""
    numbers = itertools.count(1)
    for title, panels in rows.items():
        made = made.with_row(builders.Row(title).id(next(numbers)))
        for panel in panels:
            made = made.with_panel(panel.id(next(numbers)))
    return made
