"""The rows of `skipnet reproduce`: the paper's results, its ablations and those of the recipe here."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.experiments.distilled_rows import by_teacher, deeper, grown, patient
from models.experiments.row import FEED_FORWARD, PLAIN, RNN, TEACHER_NETWORKS, Row, Schedule
from models.training.recipes import OperatingPoint, Stage

ALPHAS = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0)


class UnknownRow(ValueError):
    """There is no row of that name; the message lists those that there are."""


def table(schedule: Schedule) -> list[Row]:
    """Return the rows of the paper's table, each after the one that it starts from."""
    # On the short schedule gates are given to a trained network; the paper's SP starts afresh.
    recipe, dense = ("multi_budget", "plain") if schedule == "short" else ("paper", None)
    three = (0, 1, 2)

    def sp(name: str, title: str, routing: str, **rest: Any) -> Row:
        return Row(name, title, "table", routing, "sp", recipe, dense, start_seed=0, at_most=90, **rest)

    def hrl(name: str, title: str, routing: str, start: str, at_most: float, **rest: Any) -> Row:
        return Row(name, title, "table", routing, "hrl", recipe, start, at_most=at_most, **rest)

    by_image = [
        Row(
            "adaptive", "SP, a target for each image", "table", RNN, "sp", "adaptive", "sp", teacher="plain",
            seeds=three, at_most=60,
        ),
        hrl("adaptive-hrl", "the same + HRL", RNN, "adaptive", 60, seeds=three),
    ]  # fmt: skip
    return [
        Row("plain", "plain ResNet", "table", PLAIN, "plain", schedule),
        sp("sp", "SP, RNN gate", RNN, seeds=three),
        hrl("hrl-70", "SP + HRL, RNN gate", RNN, "sp", 70, seeds=three),
        hrl("hrl-50", "SP + HRL, RNN gate, half", RNN, "sp", 50, seeds=three, changes={"alpha": 1.0}),
        sp("ff-sp", "SP, FFGate-I", FEED_FORWARD),
        hrl("ff-hrl", "SP + HRL, FFGate-I", FEED_FORWARD, "ff-sp", 70),
        *((*by_image, *by_teacher()) if schedule == "short" else ()),
    ]  # fmt: skip


def ablations(schedule: Schedule) -> list[Row]:
    """Return the ablations; on the short schedule those that begin afresh take equally many epochs."""
    equal: dict[str, Any] = {"epochs": 8} if schedule == "short" else {}
    longer: dict[str, Any] = {"epochs": 10} if schedule == "short" else {}
    half = equal | {"operating_points": (OperatingPoint(1, 0.5, 0.6),)}
    # SP without a target leaves its gates open; sharpened, none would ever be sampled closed.
    explore = {"gate_logit_scale": 1.0}
    # What HRL's recipe lacks when there is no SP before it: a rate to learn with, statistics, gates that begin open.
    afresh = {"batch": 128, "samples": 1, "gate_logit_scale": 1.0, "gate_bias_init": 2.0, "statistics": "executed"}
    if schedule == "short":
        afresh |= equal | {"rate": 0.15}
    else:
        afresh |= {"rate": 0.1, "schedule": "steps", "iterations": 80_000, "warm_up": 400}

    def row(name: str, title: str, stage: Stage, changes: Mapping[str, Any], **rest: Any) -> Row:
        return Row(name, title, "ablations", RNN, stage, schedule, changes=changes, **rest)

    def after(name: str, title: str, changes: Mapping[str, Any]) -> Row:
        return row(name, title, "hrl", changes, start="sp-first")

    return [
        row("gates-hard", "gates hard in SP", "sp", half),
        row("gates-soft", "gates soft in SP, hard afterwards", "sp", half | {"gates": "soft"}),
        row("sp-first", "SP, where the following start", "sp", equal),
        row("sp-longer", "SP for as many epochs as SP + HRL", "sp", longer),
        *(after(f"alpha-{alpha:g}", f"HRL, alpha {alpha:g}", {"alpha": alpha} | explore) for alpha in ALPHAS),
        *(
            after(f"statistics-{kind}", f"HRL, batch norm's statistics {kind}", {"statistics": kind} | explore)
            for kind in ("frozen", "executed", "re-estimated")
        ),
        row("scratch", "HRL from scratch", "hrl", afresh),
        row("pure", "policy gradient alone, from scratch", "hrl", afresh | {"pure": True}),
    ]  # fmt: skip


def recipe_parts() -> list[Row]:
    """Return SP by `adaptive` at once from the dense network, and the same without each of its parts."""
    whole: dict[str, Any] = {"gate_bias_init": 2.0, "target_annealing": (0.05, 0.5)}

    def row(name: str, title: str, changes: Mapping[str, Any], start: str = "plain") -> Row:
        return Row(name, title, "recipe", RNN, "sp", "adaptive", start, teacher="plain", at_most=60, changes=changes)

    return [
        row("at-once", "targets by image, at once from the dense network", whole),
        row("one-target", "the same, one target for all images", whole | {"per_sample_spread": None}),
        row("no-teacher", "the same, no distillation", whole | {"distillation_weight": 0.0}),
        row(
            "one-rung",
            "the same, all images at threshold 0.5",
            whole | {"operating_points": (OperatingPoint(1, 0.5, 0.55),)},
        ),
        row(
            "one-target-first", "one target for all images, an epoch", whole | {"epochs": 1, "per_sample_spread": None}
        ),
        row("then-by-image", "and then targets by image, an epoch", {"epochs": 1}, start="one-target-first"),
    ]


def find_row(name: str, schedule: Schedule) -> Row:
    """Return the row called ``name``; raises UnknownRow, listing the names, where there is none."""
    groups = all_groups(schedule)
    rows = {row.name: row for group in groups.values() for row in group}
    if name not in rows:
        raise UnknownRow(f"no row is called {name!r}; there are {', '.join(groups)} and {', '.join(rows)}")
    return rows[name]


def all_groups(schedule: Schedule) -> dict[str, list[Row]]:
    """Return the rows of each group that the schedule has."""
    groups = {"table": table(schedule), "ablations": ablations(schedule)}
    grows = [*grown(0.37, 40, 0.1), *grown(0.47, 50, 0.05), *deeper()]
    ours = {"recipe": recipe_parts(), "grown": grows, "patient": patient()}
    return groups | ours if schedule == "short" else groups


def find_runs(
    names: Iterable[str], schedule: Schedule, seeds: Sequence[int] | None = None, starts: bool = True
) -> list[tuple[Row, int]]:
    """Return the rows of the given names or groups, once for each seed; None for their own.

    The run that teaches a run comes before it, and with ``starts`` the one that it starts from. Raises UnknownRow.
    """
    groups = all_groups(schedule)
    runs: dict[tuple[str, int], tuple[Row, int]] = {}

    def want(row: Row, seed: int) -> None:
        if row.teacher is not None and row.teacher not in TEACHER_NETWORKS:
            want(find_row(row.teacher, schedule), 0)
        if starts and row.start_depth is None:
            for name in row.parts:
                want(find_row(name, schedule), row.seed_of_start(seed))
        runs[row.name, seed] = row, seed

    for row in [row for name in names for row in groups.get(name) or [find_row(name, schedule)]]:
        for seed in row.seeds if seeds is None else seeds:
            want(row, seed)
    return list(runs.values())
