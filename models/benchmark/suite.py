"""Measure the routed engines of a network against the fastest dense engine and SkipNet's public code."""

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
from models.benchmark.energy import joules_per_run, open_meter
from models.benchmark.subject import Subject
from models.benchmark.timing import Timing, interleave
from models.engines.factory import build, describe
from models.engines.protocol import Engine
from models.evaluation.forced_routes import force_route, spread_evenly, without_gates
from models.macs import Mode
from models.network import SkipNet

PUBLIC_CODE = "SkipNet's public code"
"""Every block is computed and masked; batch norm is not folded into the convolutions."""
DENSE, OWN_ROUTING = "dense", "own decisions"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """One engine at one batch size, thread count and routing.

    ``routing`` is DENSE, OWN_ROUTING or a forced share of the gated blocks. ``milliseconds`` is the median time of a
    batch. ``mac_share`` is relative to the dense network. It counts the MACs of the decisions, even if an engine
    computes more. ``wall_share`` and its quartiles are relative to the fastest dense engine, compared round by round.
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
    progress: Callable[[Measurement], None],
    device: str = "cpu",
    others: bool = True,
) -> list[Measurement]:
    """Measure a subject at every batch size and thread count.

    ``progress`` is called with each measurement.

    ``engines`` are names or name:mode, by default in mode branch. ``shares`` are the forced shares of executed gated
    blocks. Each combination takes about ``seconds``. An engine that is unavailable or out of memory is left out with a
    warning in the log. Without ``others`` only our own dense engines are measured, because torch.compile takes a
    minute.
    """
    found = []
    for thread_count in threads:
        for batch in batches:
            for measurement in measure(subject, engines, batch, thread_count, shares, seconds, device, others):
                progress(measurement)
                found.append(measurement)
    return found


def measure(
    subject: Subject,
    engines: list[str],
    batch: int,
    threads: int,
    shares: list[float],
    seconds: float,
    device: str,
    others: bool,
) -> list[Measurement]:
    """Return the measurements of one batch size and thread count, all from the same rounds."""
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
                # A compiler or library is missing, or memory is short. Compilers and drivers have their own exceptions.
                log.warning("%s at batch %d is left out: %s", name, batch, describe(error))
                return
            key = f"{routing}|{name}"
            mac_shares[key] = share
            contenders[key] = lambda: built.run(images, thresholds)

        def route(network: SkipNet, routing: str) -> None:
            for engine in engines:
                name, _, mode = engine.partition(":")
                kind: Mode = "mask" if mode == "mask" else "branch"
                enter(
                    engine, network, partial(build, subject.checkpoint(network), name, device, threads, kind), routing
                )

        plain = without_gates(subject.network, find_architecture(subject.architecture))
        for label, make in dense_engines(subject.checkpoint(plain), device, threads, others).items():
            enter(label, plain, make, DENSE)
        if subject.own_routing:
            route(subject.network, OWN_ROUTING)
        else:
            for share in shares:
                executed = spread_evenly(subject.network.decision_count, share)
                route(force_route(subject.network, executed), f"{share:.0%} of the blocks")
        masked = partial(build, subject.checkpoint(subject.network), "reference", device, threads, "mask")
        enter(PUBLIC_CODE, subject.network, masked, OWN_ROUTING)
        timings = interleave(contenders, seconds)
        meter = open_meter(device)
        joules = {} if meter is None else {key: joules_per_run(run, meter) / batch for key, run in contenders.items()}
    return tabulate(subject, batch, threads, timings, mac_shares, joules)


def executed_share(
    subject: Subject,
    network: SkipNet,
    engine: Engine,
    images: NDArray[np.float32],
    thresholds: NDArray[np.float32],
) -> float:
    """Return the MACs of an engine's decisions for these images over the dense MACs."""
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
) -> list[Measurement]:
    """Return the measurements of the timings, whose keys are "routing|engine"."""
    dense = min((key for key in timings if key.startswith(f"{DENSE}|")), key=lambda key: timings[key].median)
    found = []
    for key, timing in timings.items():
        routing, engine = key.split("|")
        middle, low, high = timing.share_of(timings[dense])
        found.append(
            Measurement(
                architecture=subject.name,
                batch=batch,
                threads=threads,
                routing=routing,
                engine=engine,
                mac_share=mac_shares[key],
                milliseconds=timing.median * 1e3,
                wall_share=middle,
                wall_share_low=low,
                wall_share_high=high,
                dense_engine=dense.removeprefix(f"{DENSE}|"),
                dense_milliseconds=timings[dense].median * 1e3,
                joules_per_image=joules.get(key),
            )
        )
    return found
