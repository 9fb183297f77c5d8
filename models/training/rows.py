"""The rows of `skipnet reproduce`: the paper's results for ResNet-38 on CIFAR-10 and its ablations, as data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.training.recipes import Rung, Stage

Schedule = Literal["paper", "short"]
Group = Literal["table", "ablations"]

PLAIN, RNN, FEED_FORWARD = "cifar10_resnet_38", "cifar10_rnn_gate_38", "cifar10_feedforward_38"
ALPHAS = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0)


class UnknownRow(ValueError):
    """There is no row of that name; the message lists those that there are."""


@dataclass(frozen=True)
class Published:
    """Top-1 accuracy and computation percentage, both in 0..100, and where they are published."""

    accuracy: float | None
    computation: float | None
    source: str


@dataclass(frozen=True)
class Row:
    """One stage of training, and the row whose checkpoint of the same seed it starts from; None starts afresh.

    ``changes`` replace values of ``recipe``. Where ``at_most`` is a computation percentage, the execute threshold is
    the one of the best accuracy on held-out images among those that compute no more.
    """

    name: str
    title: str
    group: Group
    architecture: str
    stage: Stage
    recipe: str
    start: str | None = None
    seeds: tuple[int, ...] = (0,)
    changes: Mapping[str, Any] = field(default_factory=dict)
    at_most: float | None = None
    published: Published | None = None


def table(schedule: Schedule) -> list[Row]:
    """Return the rows of the paper's table, each after the one that it starts from."""
    three = (0, 1, 2)
    # On the short schedule gates are given to a trained network; the paper's SP starts afresh.
    recipe, dense = ("dial", "plain") if schedule == "short" else ("paper", None)

    def row(name: str, title: str, architecture: str, stage: Stage, start: str | None, **rest: Any) -> Row:
        return Row(name, title, "table", architecture, stage, recipe, start, **rest)

    return [
        Row(
            "plain", "plain ResNet-38", "table", PLAIN, "plain", schedule, seeds=three,
            published=Published(92.50, 100.0, "Table 2"),
        ),
        row(
            "sp", "SP, RNN gate", RNN, "sp", dense, seeds=three, at_most=90,
            published=Published(None, 89.0, "Figure 4"),
        ),
        row(
            "hrl-70", "SP + HRL, RNN gate", RNN, "hrl", "sp", seeds=three, at_most=70,
            published=Published(92.75, 70.27, "public checkpoint"),
        ),
        row("hrl-50", "SP + HRL, RNN gate, half", RNN, "hrl", "sp", seeds=three, changes={"alpha": 1.0}, at_most=50),
        row("ff-sp", "SP, FFGate-I", FEED_FORWARD, "sp", dense, at_most=90),
        row("ff-hrl", "SP + HRL, FFGate-I", FEED_FORWARD, "hrl", "ff-sp", at_most=70),
    ]  # fmt: skip


def ablations(schedule: Schedule) -> list[Row]:
    """Return the ablations; on the short schedule those that begin afresh take equally many epochs."""
    equal: dict[str, Any] = {"epochs": 8} if schedule == "short" else {}
    longer: dict[str, Any] = {"epochs": 10} if schedule == "short" else {}
    half = equal | {"rungs": (Rung(1, 0.5, 0.6),)}
    # What HRL's recipe lacks when there is no SP before it: a rate to learn with, statistics, gates that begin open.
    afresh = {"batch": 128, "samples": 1, "sharpen": 1.0, "open_bias": 2.0, "statistics": "executed"}
    if schedule == "short":
        afresh |= equal | {"rate": 0.15}
    else:
        afresh |= {"rate": 0.1, "schedule": "steps", "iterations": 80_000, "warm_up": 400}

    def row(name: str, title: str, stage: Stage, changes: Mapping[str, Any], **rest: Any) -> Row:
        return Row(name, title, "ablations", RNN, stage, schedule, changes=changes, **rest)

    def after(name: str, title: str, changes: Mapping[str, Any]) -> Row:
        return row(name, title, "hrl", changes, start="sp-first")

    return [
        row("gates-hard", "gates hard in SP", "sp", half, published=Published(90.83, None, "Table 3")),
        row(
            "gates-soft", "gates soft in SP, hard afterwards", "sp", half | {"gates": "soft"},
            published=Published(66.67, None, "Table 3"),
        ),
        row("sp-first", "SP, where the following start", "sp", equal),
        row("sp-longer", "SP for as many epochs as SP + HRL", "sp", longer),
        *(after(f"alpha-{alpha:g}", f"HRL, alpha {alpha:g}", {"alpha": alpha}) for alpha in ALPHAS),
        *(
            after(f"statistics-{kind}", f"HRL, batch norm's statistics {kind}", {"statistics": kind})
            for kind in ("frozen", "executed", "re-estimated")
        ),
        row("scratch", "HRL from scratch", "hrl", afresh),
        row(
            "pure", "policy gradient alone, from scratch", "hrl", afresh | {"pure": True},
            published=Published(10.0, None, "appendix"),
        ),
    ]  # fmt: skip


def find_rows(names: Iterable[str], schedule: Schedule, starts: bool = True) -> list[Row]:
    """Return the rows of the given names or groups ("table", "ablations"); with ``starts``, before each of them the
    one that it starts from.

    Raises UnknownRow.
    """
    rows = {row.name: row for row in (*table(schedule), *ablations(schedule))}
    wanted: dict[str, Row] = {}

    def want(row: Row) -> None:
        if starts and row.start is not None:
            want(rows[row.start])
        wanted[row.name] = row

    for name in names:
        chosen = [row for row in rows.values() if name in (row.name, row.group)]
        if not chosen:
            raise UnknownRow(f"no row is called {name!r}; there are table, ablations and {', '.join(rows)}")
        for row in chosen:
            want(row)
    return list(wanted.values())
