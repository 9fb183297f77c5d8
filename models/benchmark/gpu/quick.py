"""Run the checks and measurements of `skipnet verify-gpu --quick`, in ten minutes of a GPU."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.architectures import find_architecture
from models.benchmark.gpu.checks import Check, build_eager, check, gpu_engines
from models.benchmark.gpu.time_split import Split, split_time
from models.benchmark.subject import Subject, executed_share, forced_checkpoint, forced_subject
from models.checkpoint import Checkpoint
from models.engines.factory import MODES, build, describe
from models.engines.persistent.engine import PersistentEngine
from models.engines.protocol import Engine, PixelEngine
from models.engines.selection import CANDIDATES
from models.engines.verification import Verification
from models.evaluation.forced_routes import force_route, spread_evenly, without_gates
from models.macs import Mode

MODELS = ("cifar10_rnn_gate_38", "cifar10_rnn_gate_110")
PHOTO_NETWORKS = ("imagenet_rnn_gate_18", "imagenet_rnn_gate_50")
SHARES = (0.0, 0.5, 1.0)
DISTINCT = 64
"""The most distinct images of a batch; a larger one repeats them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Batch sizes that are compared with the reference, and sizes that are timed for about ``seconds`` each."""

    compared: tuple[int, ...]
    sizes: tuple[int, ...]
    photo_sizes: tuple[int, ...]
    photo_side: int
    seconds: float


PLANS = {
    "cuda": Plan((1, 265, 1024), (1, 8, 32, 128, 256, 1024, 8192), (1, 8, 32, 128), 224, 0.2),
    "cpu": Plan((1, 3), (1, 2), (1,), 64, 0.0),
}
"""On a CPU the same functions run without CUDA graphs, only to show that they run."""


def find_plan(device: str) -> Plan:
    return PLANS[device.partition(":")[0]]


def compare_sizes(checkpoint: Checkpoint, device: str) -> Iterator[Check]:
    """Compare every GPU engine of a checkpoint with the reference in batches of the plan's sizes."""
    sizes = find_plan(device).compared
    listed = ", ".join(f"{size:,}" for size in sizes)
    for name, make in gpu_engines(checkpoint, device).items():

        def run(engine: Engine) -> tuple[bool, str]:
            Verification(checkpoint).check(engine, sizes)
            return True, f"in batches of {listed} images, and as pixels"

        yield check(f"{checkpoint.name}/{checkpoint.version}", name, "output of the reference", make, run)


def split_times(checkpoints: Iterable[Checkpoint], device: str) -> Iterator[Split]:
    """Yield the time in parts of ``checkpoints``, and of networks for photos with random weights."""
    plan = find_plan(device)
    for checkpoint in checkpoints:
        own = executed_share(checkpoint)
        yield from split_subject(forced_checkpoint(checkpoint, 1), plan.sizes, () if own is None else (own,), device)
    for name in PHOTO_NETWORKS:
        yield from split_subject(forced_subject(name, 1, plan.photo_side), plan.photo_sizes, (), device)


def split_subject(subject: Subject, sizes: tuple[int, ...], own: tuple[float, ...], device: str) -> Iterator[Split]:
    """Yield the time in parts of a network: dense, and at forced shares of executed blocks."""
    plain = without_gates(subject.network, find_architecture(subject.architecture))
    networks = {"dense": plain}
    for share in sorted({*SHARES, *own}):
        executed = spread_evenly(subject.network.decision_count, share)
        networks[f"{share:.0%} of the blocks"] = force_route(subject.network, executed)
    for routing, network in networks.items():
        for label, mode in labels(gated=routing != "dense"):
            try:
                engine = build_for(subject.checkpoint(network), label.partition(":")[0], device, mode)
            except Exception as error:  # compilers and drivers have exceptions of their own
                log.warning("%s of %s is left out: %s", label, subject.name, describe(error))
                continue
            with closing(engine):
                yield from split_sizes(engine, subject, sizes, find_plan(device).seconds, routing, label)


def labels(gated: bool) -> Iterator[tuple[str, Mode]]:
    """Yield the GPU engines as name:mode, with the mode. A network without gates has one mode."""
    for name in CANDIDATES["cuda"]:
        for mode in MODES[name] if gated else MODES[name][-1:]:
            yield f"{name}:{mode}", mode


def build_for(checkpoint: Checkpoint, name: str, device: str, mode: Mode) -> PixelEngine:
    if device == "cpu" and name == "cuda_graph":
        return build_eager(checkpoint, mode)
    engine = build(checkpoint, name, device, 1, mode)
    assert isinstance(engine, PixelEngine)
    return engine


def split_sizes(
    engine: PixelEngine, subject: Subject, sizes: tuple[int, ...], seconds: float, routing: str, label: str
) -> Iterator[Split]:
    """Yield a row for each size, for the persistent kernel also with half of its thread blocks: one on each SM."""
    for size in sizes:
        grids = [0]
        if isinstance(engine, PersistentEngine):
            most = engine.thread_blocks
            grids = [most] if size < most else [most, max(1, most // 2)]
        for grid in grids:
            if isinstance(engine, PersistentEngine):
                engine.thread_blocks = grid
            try:
                parts = split_time(engine, noise_pixels(size, *subject.images.shape[2:]), 0.5, seconds)
            except Exception as error:
                log.warning("%s at batch %d is left out: %s", label, size, describe(error))
                return
            yield Split(subject.name, routing, label, size, grid, **parts)
        if isinstance(engine, PersistentEngine):
            engine.thread_blocks = grids[0]


def noise_pixels(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return seeded random pixels [count, height, width, 3], some of them repeated."""
    distinct = np.random.default_rng(0).integers(0, 256, (min(count, DISTINCT), height, width, 3), np.uint8)
    return distinct[np.arange(count) % len(distinct)]
