"""What `skipnet bench` measures: a network's routed engines against the best dense engine and the masked way."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from models.architectures import find_architecture
from models.benchmark.dense_engines import dense_engines
from models.benchmark.energy import joules_a_run, open_meter
from models.benchmark.forced_routes import force_route, spread_evenly, without_gates
from models.benchmark.subject import Subject
from models.benchmark.timing import Timing, interleave
from models.engines.factory import build, describe
from models.engines.protocol import Engine
from models.macs import Mode
from models.network import SkipNet

PUBLIC_CODE = "masked, unfolded"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One measurement. Shares are of the best dense engine: of its MACs and, round by round, of its time.

    ``mac_share`` counts what the decisions cost: an engine that rounds a batch's images up (cuda_graph) computes more.
    """

    architecture: str
    batch: int
    threads: int
    routing: str
    engine: str
    mac_share: float
    milliseconds: float
    wall_share: float
    wall_share_low: float
    wall_share_high: float
    dense_engine: str
    dense_milliseconds: float
    joules_per_image: float | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def run_suite(
    subject: Subject,
    *,
    engines: list[str],
    batches: list[int],
    threads: list[int],
    shares: list[float],
    seconds: float,
    report: Callable[[Row], None],
    device: str = "cpu",
) -> list[Row]:
    """Measure a subject at every batch size and thread count; ``report`` is told each row as it is known.

    ``engines`` are names, or name:mode where it is not to branch. ``seconds`` is about how long each combination
    takes. What cannot be had, or has no memory for a batch, is left out, and the log says why.
    """
    rows = []
    for lanes in threads:
        for batch in batches:
            for row in measure(subject, engines, batch, lanes, shares, seconds, device):
                report(row)
                rows.append(row)
    return rows


def measure(
    subject: Subject, engines: list[str], batch: int, threads: int, shares: list[float], seconds: float, device: str
) -> list[Row]:
    """Return the rows of one batch size and thread count, all measured in the same rounds."""
    torch.set_num_threads(threads)
    images = subject.images[np.arange(batch) % len(subject.images)]
    thresholds = np.full(batch, 0.5, np.float32)
    mac_shares: dict[str, float] = {}
    contenders: dict[str, Callable[[], object]] = {}
    with ExitStack() as open_engines:

        def enter(name: str, network: SkipNet, make: Callable[[], Engine], routing: str) -> None:
            try:
                built = make()
                open_engines.callback(built.close)
                share = executed_share(subject, network, built, images, thresholds)
            except Exception as error:
                # No compiler, no memory, no library: compilers and drivers have exceptions of their own.
                log.warning("%s at batch %d is left out: %s", name, batch, describe(error))
                return
            key = f"{routing}|{name}"
            mac_shares[key] = share
            contenders[key] = lambda: built.run(images, thresholds)

        def route(network: SkipNet, routing: str) -> None:
            for engine in engines:
                name, _, mode = engine.partition(":")
                way: Mode = "mask" if mode == "mask" else "branch"
                enter(engine, network, partial(build, subject.checkpoint(network), name, device, threads, way), routing)

        plain = without_gates(subject.network, find_architecture(subject.architecture))
        for label, make in dense_engines(subject.checkpoint(plain), device, threads).items():
            enter(label, plain, make, "dense")
        if subject.own_routing:
            route(subject.network, "its own")
        else:
            for share in shares:
                executed = spread_evenly(subject.network.decision_count, share)
                route(force_route(subject.network, executed), f"{share:.0%} of the blocks")
        masked = partial(build, subject.checkpoint(subject.network), "reference", device, threads, "mask")
        enter(PUBLIC_CODE, subject.network, masked, "its own")
        timings = interleave(contenders, seconds)
        meter = open_meter(device)
        joules = {} if meter is None else {key: joules_a_run(run, meter) / batch for key, run in contenders.items()}
    return tabulate(subject, batch, threads, timings, mac_shares, joules)


def executed_share(
    subject: Subject,
    network: SkipNet,
    engine: Engine,
    images: NDArray[np.float32],
    thresholds: NDArray[np.float32],
) -> float:
    """Return the MACs that an engine's decisions cost for these images, over the dense ones."""
    counts = subject.checkpoint(network).macs
    routed = engine.run(images, thresholds)
    return float(counts.executed(routed.executed, routed.mode).mean() / counts.dense)


def tabulate(
    subject: Subject,
    batch: int,
    threads: int,
    timings: dict[str, Timing],
    mac_shares: dict[str, float],
    joules: dict[str, float],
) -> list[Row]:
    dense = min((key for key in timings if key.startswith("dense|")), key=lambda key: timings[key].median)
    rows = []
    for key, timing in timings.items():
        routing, engine = key.split("|")
        middle, low, high = timing.share_of(timings[dense])
        rows.append(
            Row(
                architecture=subject.architecture,
                batch=batch,
                threads=threads,
                routing=routing,
                engine=engine,
                mac_share=mac_shares[key],
                milliseconds=timing.median * 1e3,
                wall_share=middle,
                wall_share_low=low,
                wall_share_high=high,
                dense_engine=dense.removeprefix("dense|"),
                dense_milliseconds=timings[dense].median * 1e3,
                joules_per_image=joules.get(key),
            )
        )
    return rows
