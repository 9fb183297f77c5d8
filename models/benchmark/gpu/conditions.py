"""Measure the time of a condition in a captured CUDA graph, if its block runs and if it does not."""

from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from models.engines.cuda_graph.engine import conditional_nodes, require_conditional_nodes

CONDITIONS = 64
RUNS = 20


def condition_costs(device: str) -> dict[str, float]:
    """Return the microseconds of one condition whose branch runs one small operator: "taken" and "not taken".

    On the CPU the same function runs eagerly.

    Raises EngineError if torch cannot capture conditions.
    """
    if device != "cpu":
        require_conditional_nodes()
    x = torch.zeros(1, device=device)
    plain = median_seconds(captured(lambda: x.add_(1), device), device)
    costs = {}
    for name, value in (("taken", True), ("not taken", False)):
        predicate = torch.tensor(value, device=device)
        seconds = median_seconds(captured(partial(conditions, predicate, x), device), device)
        costs[name] = max(0.0, seconds - plain) / CONDITIONS * 1e6
    return costs


def conditions(predicate: Tensor, x: Tensor) -> None:
    for _ in range(CONDITIONS):
        torch.ops.higher_order.cond(predicate, add_one, keep, (x,))


def add_one(x: Tensor) -> tuple[()]:
    x.add_(1)
    return ()


def keep(x: Tensor) -> tuple[()]:
    """Run a small operator: drivers before r570 can hang on an empty branch."""
    x.mul_(1)
    return ()


def captured(function: Callable[[], object], device: str) -> Callable[[], object]:
    """Return a replay of ``function`` as a CUDA graph, or ``function`` itself on the CPU."""
    if device == "cpu":
        return function
    warm_up, nodes = conditional_nodes()
    function()
    with warm_up:
        function()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph), nodes:
        function()
    return graph.replay


def median_seconds(run: Callable[[], object], device: str) -> float:
    times = []
    with torch.inference_mode():
        for _ in range(RUNS + 1):
            began = perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize(device)
            times.append(perf_counter() - began)
    return float(np.median(times[1:]))
