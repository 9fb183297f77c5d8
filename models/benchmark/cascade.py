"""Measure the latency of a cascade on real images, beside its stages and the fastest dense engine."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from models.benchmark.dense_engines import dense_engines
from models.cascade.config import Cascade
from models.cascade.engine import CascadeEngine, executed_macs, load_cascade_engine
from models.data.source import Source
from models.preprocessing import prepare

IMAGES = 1024
"""The number of test images that are timed. The 99th percentile needs many of them."""
WARM_UP = 8
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CascadeTiming:
    """One system at one batch size and thread count, on the same batches as the others.

    ``mean``, ``p50`` and ``p99`` are milliseconds of a batch. ``mac_share`` is the mean MACs over the dense MACs of the
    last stage. ``wall_share`` is the mean time over that of the fastest dense engine.
    """

    system: str
    batch: int
    threads: int
    mac_share: float
    mean: float
    p50: float
    p99: float
    wall_share: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def cascade_images(cascade: Cascade, source: Source) -> Floats:
    """Return at most `IMAGES` test images [N, 3, H, W], prepared as in the service."""
    spec = cascade.config.input
    count = min(IMAGES, len(source))
    return np.stack([prepare(source.image(index, spec.resize)[0], spec) for index in range(count)])


def time_cascade(cascade: Cascade, images: Floats, batch: int, threads: int) -> list[CascadeTiming]:
    """Measure the latency of the cascade, of each stage alone, and of the dense engines of the last stage.

    Every batch runs on all systems in random order before the next one, so that noise affects all of them equally.
    ``images`` are [N, 3, H, W] with N at least ``batch``. Each image is timed once.
    """
    with ExitStack() as opened:
        engine = opened.enter_context(closing(load_cascade_engine(cascade, threads=threads, device="cpu")))
        systems = {"cascade": cascade_run(cascade, engine)}
        for stage, own, threshold in zip(cascade.stages, engine.engines, cascade.thresholds, strict=False):
            systems[f"{stage.name} alone"] = plain_run(own.run, threshold)
        dense: list[str] = []
        for name, make in dense_engines(cascade.stages[-1], "cpu", threads, others=False).items():
            dense.append(f"dense, {name}")
            systems[dense[-1]] = plain_run(opened.enter_context(closing(make())).run, 0.0)
        starts = range(0, len(images) - batch + 1, batch)
        times = time_batches(systems, [images[start : start + batch] for start in starts])
        shares = mac_shares(cascade, engine, images)
    fastest = min(dense, key=lambda name: float(times[name].mean()))
    return [
        CascadeTiming(
            system=name,
            batch=batch,
            threads=threads,
            mac_share=shares.get(name, 1.0),
            mean=1000 * float(taken.mean()),
            p50=1000 * float(np.percentile(taken, 50)),
            p99=1000 * float(np.percentile(taken, 99)),
            wall_share=float(taken.mean() / times[fastest].mean()),
        )
        for name, taken in times.items()
        if name not in dense or name == fastest
    ]


def cascade_run(cascade: Cascade, engine: CascadeEngine) -> Callable[[Floats], object]:
    """Return a function that runs a batch at the cascade's own thresholds and margins."""
    row = np.asarray(cascade.thresholds, np.float32)
    return lambda images: engine.run(images, np.tile(row, (len(images), 1)))


def plain_run(run: Callable[[Floats, Floats], object], threshold: float) -> Callable[[Floats], object]:
    """Return a function that runs a batch at one execute threshold."""
    return lambda images: run(images, np.full(len(images), threshold, np.float32))


def time_batches(
    systems: dict[str, Callable[[Floats], object]], batches: list[Floats]
) -> dict[str, NDArray[np.float64]]:
    """Return the seconds of every batch on every system."""
    for run in systems.values():
        for images in batches[:WARM_UP]:
            run(images)
    times = {name: np.empty(len(batches)) for name in systems}
    order = np.random.default_rng(0)
    for number, images in enumerate(batches):
        for name in order.permutation(list(systems)).tolist():
            began = time.perf_counter()
            systems[name](images)
            times[name][number] = time.perf_counter() - began
    return times


def mac_shares(cascade: Cascade, engine: CascadeEngine, images: Floats) -> dict[str, float]:
    """Return the mean MACs of the cascade and of its first stage over the dense MACs of the last stage."""
    routed = engine.run(images, np.tile(np.asarray(cascade.thresholds, np.float32), (len(images), 1)))
    costs = [float(stage.mean()) / cascade.dense_macs for stage in executed_macs(cascade, routed, "branch")]
    return {"cascade": sum(costs), f"{cascade.stages[0].name} alone": costs[0]}


def draw_cascade_table(timings: list[CascadeTiming]) -> str:
    """Return the timings as a Markdown table."""
    lines = [
        "| system | batch, threads | mean ms | p50 | p99 | MACs / dense | time / fastest dense engine |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in timings:
        lines.append(
            f"| {each.system} | {each.batch}, {each.threads} | {each.mean:.3g} | {each.p50:.3g} | {each.p99:.3g} | "
            f"{each.mac_share:.2f} | {each.wall_share:.2f} |"
        )
    return "\n".join(lines)
