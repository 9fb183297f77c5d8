"""The rows of `skipnet reproduce`: the paper's results, its ablations and those of the recipe here, as data."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from models.training.recipes import Rung, Stage

Schedule = Literal["paper", "short"]
Group = Literal["table", "ablations", "recipe", "grown", "patient"]

PLAIN, RNN, FEED_FORWARD = "resnet", "rnn_gate", "feedforward"
WIDE_NETWORKS = WIDE_ANSWERS, WIDER, WIDER_ANSWERS = "wide-answers", "wider", "wider-answers"
"""Teachers that are no rows: a network of `models.training.wide`, asked about each image as it is seen, or the answers
that it has given once.
"""
ALPHAS = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0)


class UnknownRow(ValueError):
    """There is no row of that name; the message lists those that there are."""


@dataclass(frozen=True)
class Published:
    """Top-1 accuracy and computation percentage, both in 0..100, and where they are published."""

    accuracy: float | None
    computation: float | None
    source: str


PUBLISHED = {
    ("cifar10_38", "plain"): Published(92.50, 100, "Table 2"),
    ("cifar10_38", "sp"): Published(None, 89, "Figure 4"),
    ("cifar10_38", "hrl-70"): Published(92.75, 70.27, "public checkpoint"),
    ("cifar10_38", "gates-hard"): Published(90.83, None, "Table 3"),
    ("cifar10_38", "gates-soft"): Published(66.67, None, "Table 3"),
    ("cifar10_38", "pure"): Published(10.0, None, "appendix"),
    ("cifar10_110", "plain"): Published(93.60, 100, "Table 2"),
    ("cifar10_110", "hrl-50"): Published(93.30, 49.5, "public checkpoint"),
    ("cifar100_38", "plain"): Published(68.54, 100, "Table 2"),
    ("cifar100_110", "plain"): Published(71.21, 100, "Table 2"),
}
"""What is published of a network, named by data set and depth, and a row."""


@dataclass(frozen=True)
class Row:
    """One stage of training, and the row whose checkpoint it starts from; None starts afresh. ``routing`` is the
    architecture's name without data set and depth.

    A run starts from that row's run of the same seed, or of ``start_seed``. Where that is of a network of another
    ``start_depth``, it is trained by a command of its own. With other ``averaged`` rows there is no training: it is the
    mean of their weights and its start's. ``teacher`` is a wide network or its answers, or the row whose run of seed 0
    teaches, where that is not the one to start from. ``changes`` replace values of ``recipe``.
    Where ``at_most`` is a computation percentage, the execute threshold is the one of the best accuracy on held-out
    images among those that compute no more.
    """

    name: str
    title: str
    group: Group
    routing: str
    stage: Stage
    recipe: str
    start: str | None = None
    start_seed: int | None = None
    start_depth: int | None = None
    averaged: tuple[str, ...] = ()
    teacher: str | None = None
    seeds: tuple[int, ...] = (0,)
    changes: Mapping[str, Any] = field(default_factory=dict)
    at_most: float | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The rows that it comes from: the one that it starts from, and those that it is averaged with."""
        return () if self.start is None else (self.start, *self.averaged)

    def seed_of_start(self, seed: int) -> int:
        """Return the seed of the run that the row's run of ``seed`` starts from."""
        return seed if self.start_seed is None else self.start_seed


def table(schedule: Schedule) -> list[Row]:
    """Return the rows of the paper's table, each after the one that it starts from."""
    # On the short schedule gates are given to a trained network; the paper's SP starts afresh.
    recipe, dense = ("dial", "plain") if schedule == "short" else ("paper", None)
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


def by_teacher() -> list[Row]:
    """Return the rows of ResNet-38's table that learn from a wide network."""
    # The gates of the network that it starts from are not opened again.
    again: dict[str, Any] = {"epochs": 42, "open_bias": 0.0, "targets_fall": (0.0, 0.05)}
    return [
        taught_sp("taught", "SP, a target for each image, taught by a wide network", "sp", 60),
        taught_hrl("taught-hrl", "the same + HRL", "taught", 60),
        taught_sp("longer", "taught, 42 epochs more", "taught", 60, **again),
        taught_hrl("longer-hrl", "the same + HRL", "longer", 60),
        Row(
            "plain-taught", "plain ResNet, the routed one's blocks, taught by a wide network", "table", PLAIN, "plain",
            "taught", "longer-hrl", start_seed=0, teacher=WIDE_ANSWERS, changes={"rate": 0.1},
        ),
        *accurate(0.66, 70),
        *accurate(0.57, 60),
    ]  # fmt: skip


def taught_sp(name: str, title: str, start: str, at_most: float, **changes: Any) -> Row:
    return Row(name, title, "table", RNN, "sp", "taught", start, teacher=WIDE_ANSWERS, at_most=at_most, changes=changes)


def taught_hrl(name: str, title: str, start: str, at_most: float, **changes: Any) -> Row:
    return Row(
        name, title, "table", RNN, "hrl", "taught", start, teacher=WIDE_ANSWERS, at_most=at_most, changes=changes
    )


def accurate(target: float, at_most: float) -> list[Row]:
    """Return the rows of a network whose gates aim at the share ``target`` of the blocks, for ``at_most`` % alone."""
    # No rung asks for little computation: what serves a low budget costs accuracy at the higher ones.
    rungs = (Rung(1 / 8, 0.0, 1.0), Rung(7 / 8, 0.5, target))
    sp, title = f"accurate-{at_most:g}", f"SP for {at_most:g} % alone, taught by a wide network"
    hrl = f"{sp}-hrl"
    longer = {"alpha": 0.4, "epochs": 8}
    return [
        taught_sp(sp, title, "plain-taught", at_most, epochs=40, rungs=rungs),
        taught_hrl(hrl, "the same + HRL", sp, at_most),
        taught_hrl(f"{hrl}-more", "the same + HRL, 4 epochs more", hrl, at_most, epochs=4),
        taught_hrl(f"{hrl}-rewarded", "SP + HRL, rewarded more for skipping", sp, at_most, alpha=0.4),
        taught_hrl(f"{hrl}-rewarded-more", "the same, 8 epochs more", f"{hrl}-rewarded", at_most, **longer),
        taught_hrl(
            f"{hrl}-half", "the same, 8 epochs more, for half of the blocks", f"{hrl}-rewarded-more", 50,
            **longer | {"alpha": 1.0},
        ),
        taught_hrl(
            f"{hrl}-long", "the same, 24 epochs more", f"{hrl}-rewarded-more", at_most,
            alpha=0.2, epochs=24, rate=0.006,
        ),
        taught_hrl(
            f"{hrl}-long-half", "the same, 8 epochs more, for half of the blocks", f"{hrl}-long", 50,
            alpha=0.8, epochs=8, rate=0.004,
        ),
        taught_hrl(
            f"{hrl}-long-half-more", "the same, 28 epochs more, for half of the blocks", f"{hrl}-long", 50,
            alpha=0.7, epochs=28, rate=0.01,
        ),
        taught_hrl(
            f"{hrl}-long-half-again", "the same, 8 epochs more", f"{hrl}-long-half-more", 50,
            alpha=0.5, epochs=8, rate=0.008,
        ),
        replace(
            taught_hrl(f"{hrl}-mean", "the mean of the last two", f"{hrl}-long-half-more", 50),
            averaged=(f"{hrl}-long-half-again",),
        ),
        taught_hrl(
            f"{hrl}-half-long", "the same, 28 epochs more, for half of the blocks", f"{hrl}-half", 50,
            alpha=0.7, epochs=28, rate=0.01,
        ),
    ]  # fmt: skip


def patient() -> list[Row]:
    """Return the rows of a network that a wider one teaches for long, asked about each image as it is augmented: on a
    GPU, but for the last, long stages, which a CPU's core trains in hours. Beyer et al. 2022 (arXiv 2106.05237).
    """
    rungs = (Rung(1 / 8, 0.0, 1.0), Rung(7 / 8, 0.5, 0.62))
    told: dict[str, Any] = {"temperature": 3.0}

    def half(name: str, title: str, alpha: float, epochs: int, rate: float, start: str = "", **rest: Any) -> Row:
        changes = told | {"alpha": alpha, "epochs": epochs, "rate": rate} | rest
        return Row(
            f"patient-hrl-{name}", title, "patient", RNN, "hrl", "taught", f"patient-hrl{start}",
            teacher=WIDER if "overlaid" in rest else WIDER_ANSWERS, at_most=50, changes=changes,
        )  # fmt: skip

    return [
        Row(
            "patient", "plain ResNet, taught by a wider network about each image as it is seen", "patient", PLAIN,
            "plain", "taught", teacher=WIDER,
            changes=told | {"epochs": 221, "batch": 256, "rate": 0.2, "overlaid": 0.5},
        ),
        Row(
            "patient-sp", "SP from it", "patient", RNN, "sp", "taught", "patient", teacher=WIDER, at_most=70,
            changes=told | {"epochs": 50, "batch": 256, "rate": 0.06, "rungs": rungs, "targets_fall": (0.05, 0.5)},
        ),
        Row(
            "patient-hrl", "the same + HRL", "patient", RNN, "hrl", "taught", "patient-sp", teacher=WIDER, at_most=70,
            changes=told | {"epochs": 3, "batch": 128, "rate": 0.012, "alpha": 0.5},
        ),
        half("half", "the same, 24 epochs more, for half of the blocks", 0.7, 24, 0.01),
        half("long", "the same, 20 epochs more, rewarded less for skipping", 0.4, 20, 0.01),
        half("slow", "the same, 15 epochs more, at a lower rate", 0.5, 15, 0.004),
        half("slow-long", "the same, 24 epochs more", 0.4, 24, 0.004, "-slow"),
        half("slow-live", "the same, 14 epochs more, its teacher asked", 0.4, 14, 0.006, "-slow", overlaid=0.5),
        replace(
            half("mean", "the mean of the last two", 0.4, 0, 0.004, "-slow-long"), averaged=("patient-hrl-slow-live",)
        ),
    ]  # fmt: skip


def grown(target: float, at_most: float, rate: float) -> list[Row]:
    """Return the rows of a deeper network that grows from the one of 38 layers that `plain-taught` leaves; its gates
    aim at the share ``target`` of the blocks, for ``at_most`` % alone.
    """
    # Of 110 layers a third of the blocks is what it grew from, of 74 half: skipping pays from the start.
    rungs = (Rung(1 / 8, 0.0, 1.0), Rung(7 / 8, 0.5, target))
    name, title = f"grown-{at_most:g}", f"SP for {at_most:g} %, grown from 38 layers, taught by a wide network"
    changes = {"epochs": 16, "rate": rate, "rungs": rungs, "targets_fall": (0.05, 0.3)}
    rows = [
        replace(taught_sp(name, title, "plain-taught", at_most, **changes), start_seed=0, start_depth=38),
        taught_hrl(f"{name}-hrl", "the same + HRL", name, at_most, alpha=0.4, epochs=4),
    ]
    return [replace(row, group="grown") for row in rows]


def ablations(schedule: Schedule) -> list[Row]:
    """Return the ablations; on the short schedule those that begin afresh take equally many epochs."""
    equal: dict[str, Any] = {"epochs": 8} if schedule == "short" else {}
    longer: dict[str, Any] = {"epochs": 10} if schedule == "short" else {}
    half = equal | {"rungs": (Rung(1, 0.5, 0.6),)}
    # SP without a target leaves its gates open; sharpened, none would ever be sampled closed.
    explore = {"sharpen": 1.0}
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
    whole: dict[str, Any] = {"open_bias": 2.0, "targets_fall": (0.05, 0.5)}

    def row(name: str, title: str, changes: Mapping[str, Any], start: str = "plain") -> Row:
        return Row(name, title, "recipe", RNN, "sp", "adaptive", start, teacher="plain", at_most=60, changes=changes)

    return [
        row("at-once", "targets by image, at once from the dense network", whole),
        row("one-target", "the same, one target for all images", whole | {"spread": None}),
        row("no-teacher", "the same, no distillation", whole | {"distil": 0.0}),
        row("one-rung", "the same, all images at threshold 0.5", whole | {"rungs": (Rung(1, 0.5, 0.55),)}),
        row("one-target-first", "one target for all images, an epoch", whole | {"epochs": 1, "spread": None}),
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
    grows = [*grown(0.37, 40, 0.1), *grown(0.47, 50, 0.05)]
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
        if row.teacher is not None and row.teacher not in WIDE_NETWORKS:
            want(find_row(row.teacher, schedule), 0)
        if starts and row.start_depth is None:
            for name in row.parts:
                want(find_row(name, schedule), row.seed_of_start(seed))
        runs[row.name, seed] = row, seed

    for row in [row for name in names for row in groups.get(name) or [find_row(name, schedule)]]:
        for seed in row.seeds if seeds is None else seeds:
            want(row, seed)
    return list(runs.values())
