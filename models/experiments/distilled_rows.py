"""The rows of networks that learn from a wide one, and of those that start from them: the ones that are shipped."""

from dataclasses import replace
from typing import Any

from models.experiments.row import LARGE, LARGE_LOGITS, PLAIN, RNN, SMALL_LOGITS, Row
from models.training.recipes import OperatingPoint


def by_teacher() -> list[Row]:
    """Return the rows of ResNet-38's table that learn from a wide network."""
    # The gates of the network that it starts from are not opened again.
    again: dict[str, Any] = {"epochs": 42, "gate_bias_init": 0.0, "target_annealing": (0.0, 0.05)}
    return [
        taught_sp("taught", "SP, a target for each image, taught by a wide network", "sp", 60),
        taught_hrl("taught-hrl", "the same + HRL", "taught", 60),
        taught_sp("longer", "taught, 42 epochs more", "taught", 60, **again),
        taught_hrl("longer-hrl", "the same + HRL", "longer", 60),
        Row(
            "plain-taught", "plain ResNet, the routed one's blocks, taught by a wide network", "table", PLAIN, "plain",
            "distilled", "longer-hrl", start_seed=0, teacher=SMALL_LOGITS, changes={"rate": 0.1},
        ),
        *accurate(0.66, 70),
        *accurate(0.57, 60),
    ]  # fmt: skip


def taught_sp(name: str, title: str, start: str, at_most: float, **changes: Any) -> Row:
    return Row(
        name, title, "table", RNN, "sp", "distilled", start, teacher=SMALL_LOGITS, at_most=at_most, changes=changes
    )


def taught_hrl(name: str, title: str, start: str, at_most: float, **changes: Any) -> Row:
    return Row(
        name, title, "table", RNN, "hrl", "distilled", start, teacher=SMALL_LOGITS, at_most=at_most, changes=changes
    )


def accurate(target: float, at_most: float) -> list[Row]:
    """Return the rows of a network whose gates aim at the share ``target`` of the blocks, for ``at_most`` % alone."""
    # No operating point asks for little computation: what serves a low budget costs accuracy at the higher ones.
    operating_points = (OperatingPoint(1 / 8, 0.0, 1.0), OperatingPoint(7 / 8, 0.5, target))
    sp, title = f"accurate-{at_most:g}", f"SP for {at_most:g} % alone, taught by a wide network"
    hrl = f"{sp}-hrl"
    longer = {"alpha": 0.4, "epochs": 8}
    return [
        taught_sp(sp, title, "plain-taught", at_most, epochs=40, operating_points=operating_points),
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
    operating_points = (OperatingPoint(1 / 8, 0.0, 1.0), OperatingPoint(7 / 8, 0.5, 0.62))
    told: dict[str, Any] = {"temperature": 3.0}

    def half(name: str, title: str, alpha: float, epochs: int, rate: float, start: str = "", **rest: Any) -> Row:
        changes = told | {"alpha": alpha, "epochs": epochs, "rate": rate} | rest
        return Row(
            f"patient-hrl-{name}", title, "patient", RNN, "hrl", "distilled", f"patient-hrl{start}",
            teacher=LARGE if "mixup" in rest else LARGE_LOGITS, at_most=50, changes=changes,
        )  # fmt: skip

    return [
        Row(
            "patient", "plain ResNet, taught by a wider network about each image as it is seen", "patient", PLAIN,
            "plain", "distilled", teacher=LARGE,
            changes=told | {"epochs": 221, "batch": 256, "rate": 0.2, "mixup": 0.5},
        ),
        Row(
            "patient-sp", "SP from it", "patient", RNN, "sp", "distilled", "patient", teacher=LARGE, at_most=70,
            changes=told | {
                "epochs": 50, "batch": 256, "rate": 0.06, "operating_points": operating_points,
                "target_annealing": (0.05, 0.5),
            },
        ),
        Row(
            "patient-hrl", "the same + HRL", "patient", RNN, "hrl", "distilled", "patient-sp", teacher=LARGE,
            at_most=70,
            changes=told | {"epochs": 3, "batch": 128, "rate": 0.012, "alpha": 0.5},
        ),
        half("half", "the same, 24 epochs more, for half of the blocks", 0.7, 24, 0.01),
        half("long", "the same, 20 epochs more, rewarded less for skipping", 0.4, 20, 0.01),
        half("slow", "the same, 15 epochs more, at a lower rate", 0.5, 15, 0.004),
        half("slow-long", "the same, 24 epochs more", 0.4, 24, 0.004, "-slow"),
        half("slow-live", "the same, 14 epochs more, its teacher asked", 0.4, 14, 0.006, "-slow", mixup=0.5),
        replace(
            half("mean", "the mean of the last two", 0.4, 0, 0.004, "-slow-long"), averaged=("patient-hrl-slow-live",)
        ),
    ]  # fmt: skip


def grown(target: float, at_most: float, rate: float) -> list[Row]:
    """Return the rows of a deeper network that grows from the one of 38 layers that `plain-taught` leaves; its gates
    aim at the share ``target`` of the blocks, for ``at_most`` % alone.
    """
    # Of 110 layers a third of the blocks is what it grew from, of 74 half: skipping pays from the start.
    operating_points = (OperatingPoint(1 / 8, 0.0, 1.0), OperatingPoint(7 / 8, 0.5, target))
    name, title = f"grown-{at_most:g}", f"SP for {at_most:g} %, grown from 38 layers, taught by a wide network"
    changes = {"epochs": 16, "rate": rate, "operating_points": operating_points, "target_annealing": (0.05, 0.3)}
    rows = [
        replace(taught_sp(name, title, "plain-taught", at_most, **changes), start_seed=0, start_depth=38),
        taught_hrl(f"{name}-hrl", "the same + HRL", name, at_most, alpha=0.4, epochs=4),
    ]
    return [replace(row, group="grown") for row in rows]


def deeper() -> list[Row]:
    """Return the rows of a deeper network that grows from the one of 38 layers that `patient` leaves.

    Its gates learn first, alone: they skip what adds nothing, and the network answers as well as it did.
    """
    told: dict[str, Any] = {"temperature": 3.0}
    gates = {
        "freeze_backbone": True, "epochs": 2, "operating_points": (OperatingPoint(1, 0.5, 0.37),),
        "per_sample_spread": 0.2, "target_annealing": (0.0, 0.6),
    }  # fmt: skip
    whole = {
        "epochs": 10, "rate": 0.005, "gate_bias_init": 0.0, "operating_points": (OperatingPoint(1, 0.5, 0.36),),
        "per_sample_spread": 0.3, "target_annealing": (0.0, 0.0), "mixup": 0.5,
    }  # fmt: skip

    def row(name: str, title: str, start: str, teacher: str, changes: dict[str, Any], **rest: Any) -> Row:
        return replace(taught_sp(name, title, start, 40, **told | changes), group="grown", teacher=teacher, **rest)

    title = "gates for 40 %, grown from 38 layers taught by a wider network"
    return [
        row("deeper-gates", title, "patient", LARGE_LOGITS, gates, start_seed=0, start_depth=38),
        row("deeper", "the same, and all of it by SP", "deeper-gates", LARGE, whole),
        row("deeper-mean", "the mean of the two", "deeper", LARGE, {"epochs": 0}, averaged=("deeper-gates",)),
    ]
