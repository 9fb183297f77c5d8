"""Compare routing by image with fixed routes of the same weights, which are equal for every image."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.checkpoint import Checkpoint, FixedRoute
from models.engines.protocol import Engine
from models.evaluation.forced_routes import force_route
from models.evaluation.metrics import collect, run_engine

Load = Callable[[Checkpoint], Engine]


def compare_fixed_routes(
    checkpoint: Checkpoint, load: Load, batches: Sequence[tuple[Tensor, Tensor]], threshold: float
) -> list[FixedRoute]:
    """Return fixed routes of about the same cost as the routed network, and how they compare with it.

    ``batches`` are normalised images [N, 3, H, W] and labels [N]. ``load`` makes an engine of a checkpoint.
    """
    logits, labels, executed = collect_outputs(checkpoint, load, batches, threshold)
    return compare_with_routed(checkpoint, load, batches, logits.argmax(1) == labels, executed)


def compare_with_routed(
    checkpoint: Checkpoint,
    load: Load,
    batches: Sequence[tuple[Tensor, Tensor]],
    correct: NDArray[np.bool_],
    executed: NDArray[np.bool_],
) -> list[FixedRoute]:
    """Return fixed routes of about the same cost as a routed network, whose decisions [N, B-1] are ``executed``.

    ``correct`` [N] tells which images the routed network classifies correctly. A fixed route executes the k gated
    blocks that the images execute most often, for every image. k is the routed mean, rounded down and up, and one less.
    A fixed route is forced through the gates, whose MACs are not counted.
    """
    mean = executed.sum(1).mean()
    routes = []
    for count in sorted({max(0, int(mean) - 1), int(mean), int(np.ceil(mean))}):
        route = most_executed(executed, count)
        forced = replace(checkpoint, network=force_route(checkpoint.network, route))
        logits, labels, _ = collect_outputs(forced, load, batches, 0.5)
        fixed = logits.argmax(1) == labels
        gain, gain_error = paired_gain(correct, fixed)
        macs = int(checkpoint.macs.executed(route[None])[0]) - sum(checkpoint.macs.gates)
        routes.append(
            FixedRoute(
                blocks=count,
                accuracy=float(fixed.mean()),
                macs=macs,
                gain=gain,
                gain_error=gain_error,
            )
        )
    return routes


def most_executed(executed: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Return the route [B-1] of the ``count`` gated blocks that images execute most often, by decisions [N, B-1]."""
    route = np.zeros(executed.shape[1], np.bool_)
    route[np.argsort(-executed.mean(0), kind="stable")[:count]] = True
    return route


def paired_gain(correct: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the difference of two accuracies on the same N images, and its standard error.

    ``correct`` and ``other`` [N] tell which images each of two systems classifies correctly.
    """
    difference = correct.astype(np.float64) - other
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def collect_outputs(
    checkpoint: Checkpoint, load: Load, batches: Sequence[tuple[Tensor, Tensor]], threshold: float
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the outputs of `collect` for a checkpoint. The engine is closed afterwards."""
    engine = load(checkpoint)
    try:
        return collect(run_engine(engine, threshold), batches)
    finally:
        engine.close()


def routing_pays(macs: float, routes: Sequence[FixedRoute]) -> bool:
    """Return whether routing is more accurate than every fixed route of its cost, by more than two standard errors.

    ``macs`` are the mean MACs of a routed image. Routes that cost more do not count.
    """
    return all(route.gain > 2 * route.gain_error for route in routes if route.macs <= macs)


HEADS = ("gated blocks", "top-1", "MACs", "points that routing gains (standard error)")
"""The heads of a table of fixed routes."""


def route_cells(routes: Sequence[FixedRoute]) -> list[tuple[str, ...]]:
    """Return the cells of a table of fixed routes, under `HEADS`."""
    return [
        (
            str(route.blocks),
            f"{route.accuracy:.2%}",
            f"{route.macs / 1e6:.2f} M",
            f"{100 * route.gain:+.2f} ({100 * route.gain_error:.2f})",
        )
        for route in routes
    ]


def compare_in_words(macs: float, routes: Sequence[FixedRoute]) -> str:
    """Return "more accurate than" if routing pays, else "not better than"."""
    return "more accurate than" if routing_pays(macs, routes) else "not better than"


def describe_routes(macs: float, routes: Sequence[FixedRoute]) -> str:
    """Return the comparison as text."""
    lines = [
        f"the same weights, {route.blocks} gated blocks for every image: {route.accuracy:.2%} for "
        f"{route.macs / 1e6:.1f} M MACs; routing by image has {100 * route.gain:+.2f} points (standard error "
        f"{100 * route.gain_error:.2f})"
        for route in routes
    ]
    verdict = (
        "Routing by image is more accurate than a fixed route of its cost."
        if routing_pays(macs, routes)
        else "Routing by image is not more accurate than a fixed route of its cost: serve that route, or a cascade."
    )
    return "\n".join([*lines, verdict])
