"""What `skipnet bench` measures: a network's routed engines against the best dense engine and the masked way."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.benchmark.forcing import force_route, spread_evenly, without_gates
from models.benchmark.measure import Timing, interleave
from models.catalogue import find_architecture
from models.checkpoint import Checkpoint, Config
from models.engines.engine import Engine, EngineError
from models.engines.selection import build
from models.macs import Mode
from models.network import SkipNet
from models.preprocessing import InputSpec

DENSE: tuple[tuple[str, Mode], ...] = (
    ("onnxruntime", "mask"),
    ("onnxruntime", "branch"),
    ("torch", "mask"),
    ("native", "branch"),
)
"""Ways to run the plain ResNet: a batch as one, or image by image on all cores."""
PUBLIC_CODE = "masked, unfolded"


@dataclass(frozen=True)
class Row:
    """One measurement. Shares are of the best dense engine: of its MACs and, round by round, of its time."""

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

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """A network to measure, and normalised images [N, 3, H, W] to measure it with: along forced routes, or along
    those that it decides itself.
    """

    architecture: str
    network: SkipNet
    images: NDArray[np.float32]
    own_routing: bool

    def checkpoint(self, network: SkipNet) -> Checkpoint:
        """Return a checkpoint in memory of one of the subject's variants."""
        height, width = self.images.shape[2:]
        spec = InputSpec(height=height, width=width, resize=height, mean=(0, 0, 0), std=(1, 1, 1))
        labels = [str(label) for label in range(network.head.out_features)]
        config = Config(architecture=self.architecture, labels=labels, input=spec, code="bench")
        return Checkpoint(Path("bench"), config, network)


def run_suite(
    subject: Subject,
    *,
    engines: list[str],
    batches: list[int],
    threads: list[int],
    shares: list[float],
    seconds: float,
    report: Callable[[Row], None],
) -> list[Row]:
    """Measure a subject at every batch size and thread count; ``report`` is told each row as it is known.

    ``seconds`` is about how long each combination takes.
    """
    rows = []
    for lanes in threads:
        for batch in batches:
            for row in measure(subject, engines, batch, lanes, shares, seconds):
                report(row)
                rows.append(row)
    return rows


def measure(
    subject: Subject, engines: list[str], batch: int, threads: int, shares: list[float], seconds: float
) -> list[Row]:
    """Return the rows of one batch size and thread count, all measured in the same rounds."""
    torch.set_num_threads(threads)
    images = subject.images[np.arange(batch) % len(subject.images)]
    thresholds = np.full(batch, 0.5, np.float32)
    mac_shares: dict[str, float] = {}
    contenders: dict[str, Callable[[], object]] = {}
    with ExitStack() as open_engines:

        def enter(name: str, network: SkipNet, engine: str, mode: Mode, routing: str) -> None:
            try:
                built = build(subject.checkpoint(network), engine, "cpu", threads, mode)
            except EngineError:
                return
            open_engines.callback(built.close)
            key = f"{routing}|{name}"
            mac_shares[key] = executed_share(subject, network, built, images, thresholds)
            contenders[key] = lambda: built.run(images, thresholds)

        plain = without_gates(subject.network, find_architecture(subject.architecture))
        for engine, mode in DENSE:
            enter(f"{engine}, {'batch as one' if mode == 'mask' else 'image by image'}", plain, engine, mode, "dense")
        for share in [] if subject.own_routing else shares:
            forced = force_route(subject.network, spread_evenly(subject.network.decision_count, share))
            for engine in engines:
                enter(engine, forced, engine, "branch", f"{share:.0%} of the blocks")
        if subject.own_routing:
            for engine in engines:
                enter(engine, subject.network, engine, "branch", "its own")
        enter(PUBLIC_CODE, subject.network, "reference", "mask", "its own")
        timings = interleave(contenders, seconds)
    return tabulate(subject, batch, threads, timings, mac_shares)


def executed_share(
    subject: Subject,
    network: SkipNet,
    engine: Engine,
    images: NDArray[np.float32],
    thresholds: NDArray[np.float32],
) -> float:
    """Return the MACs that an engine really computes for these images, over the dense ones."""
    counts = subject.checkpoint(network).macs
    routed = engine.run(images, thresholds)
    return float(counts.executed(routed.executed, routed.mode).mean() / counts.dense)


def tabulate(
    subject: Subject, batch: int, threads: int, timings: dict[str, Timing], mac_shares: dict[str, float]
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
            )
        )
    return rows
