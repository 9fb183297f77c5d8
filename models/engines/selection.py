"""Select an engine by name, or the fastest one by a short measurement."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from models.checkpoint import Checkpoint
from models.engines.choice_cache import Choice, ChoiceCache
from models.engines.factory import CPU_ONLY, GPU_ONLY, MODES, build, closing_on_error
from models.engines.folding import fold
from models.engines.protocol import Engine, EngineError
from models.engines.routing_switch import Costs, RoutingSwitch, median_seconds
from models.engines.subprocess_check import DeviceTaken, check_in_subprocess
from models.engines.verification import IMAGES, IMAGES_ON_CPU, Verification, recorded_sizes
from models.machine import available_cpus
from models.macs import Mode

# onnxruntime is no candidate on CUDA, because it waits for the device at every gate.
CANDIDATES = {"cpu": ("native", "native_int16", "onnxruntime"), "cuda": GPU_ONLY}
CHECKED_IN_SUBPROCESS = {("persistent", "branch"), ("cuda_graph", "branch")}
"""Engines with their own kernel or with conditional nodes. A fault can hang the process or make its GPU unusable."""
COMPARED_ELSEWHERE = ("native_int16",)
"""Engines that round. `skipnet quantize` compared their decisions and labels on validation images."""
LAST_RESORT = "torch"
TURNS = 3

OnFallback = Callable[[str, str], None]
"""Called with the name of an engine that auto cannot use, and the reason."""

log = logging.getLogger(__name__)


def select(
    checkpoint: Checkpoint,
    name: str,
    device: str,
    threads: int | None,
    routing: str,
    on_fallback: OnFallback | None = None,
    cache: Path | None = None,
) -> Engine:
    """Return an engine, as ``load_engine`` does. With auto, two engines may do the branching and the masking."""
    if name not in (*MODES, "auto"):
        raise EngineError(f"unknown engine {name!r}; choose auto, {', '.join(MODES)}")
    if routing not in (*get_args(Mode), "auto"):
        raise EngineError(f"unknown routing {routing!r}; choose auto, {', '.join(get_args(Mode))}")
    found = find_device(device, name)
    try:
        return select_on(checkpoint, name, found, threads, routing, on_fallback, cache)
    except EngineError as error:
        if device != "auto" or found == "cpu" or name in GPU_ONLY:
            raise
        log.warning("%s cannot serve, the device auto falls back to the CPU: %s", found, error)
        if on_fallback is not None:
            on_fallback(LAST_RESORT if name == "auto" else name, str(error))
    return select_on(checkpoint, name, "cpu", threads, routing, on_fallback, cache)


def select_on(
    checkpoint: Checkpoint,
    name: str,
    device: str,
    threads: int | None,
    routing: str,
    on_fallback: OnFallback | None,
    cache: Path | None,
) -> Engine:
    """Return an engine on a device that is not auto, as ``select`` does."""
    selection = Selection(checkpoint, device, threads or available_cpus(), on_fallback)
    modes: tuple[Mode, ...] = ("mask",) if routing == "mask" else ("branch",)
    if routing == "auto":
        modes = ("branch", "mask") if name == "auto" else MODES[name]
    if checkpoint.network.gate_kind is None:
        modes = modes[:1]
    if name != "auto":
        return selection.combined(modes, partial(selection.verified, name))
    if device != "cpu":
        return selection.combined(modes, selection.fastest)
    kept = None
    if cache is not None and checkpoint.folder.is_dir():
        kept = ChoiceCache(cache, checkpoint, selection.threads, routing)
    return choose_on_cpu(selection, modes, kept)


def choose_on_cpu(selection: "Selection", modes: tuple[Mode, ...], kept: ChoiceCache | None) -> Engine:
    """Return the engine that was chosen at an earlier start, or the fastest one, and keep the choice."""
    if kept is not None and (choice := kept.read()) is not None:
        try:
            return selection.repeated(choice)
        except EngineError as error:
            log.warning("the engines of the last start cannot be used, measuring again: %s", error)
    engine = only_needed(selection.combined(modes, selection.fastest))
    # After a fallback, the next start has to try the missing engine again.
    if kept is not None and not selection.reported:
        kept.write(Choice.of(engine, modes[0]))
    return engine


def only_needed(engine: Engine) -> Engine:
    """Return the engine of one mode if a switch would never use the other one, which is then closed."""
    if not isinstance(engine, RoutingSwitch) or len(engine.winners) > 1:
        return engine
    [mode] = engine.winners
    for other, unused in engine.engines.items():
        if other != mode:
            unused.close()
    return engine.engines[mode]


def find_device(device: str, engine: str) -> str:
    """Return cpu or cuda:N for a device option.

    Raises EngineError if torch does not see the device.
    """
    kind, _, index = device.partition(":")
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() and engine not in CPU_ONLY else "cpu"
    if device == "cpu":
        return device
    if kind != "cuda" or not (index or "0").isdecimal():
        raise EngineError(f"unknown device {device!r}; choose auto, cpu, cuda or cuda:N")
    if int(index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"there is no {device} here: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA "
            "devices. Give the container a GPU and install a CUDA build of torch, or choose the device cpu."
        )
    return f"cuda:{index or 0}"


def find_devices(devices: str, engine: str) -> list[str]:
    """Return the devices of an option: one, several with commas between them, or with "all" every GPU that torch sees.

    A device may be named more than once. "auto" stays auto: `load_engine` falls back from a GPU that cannot serve.
    Raises EngineError as `find_device` does.
    """
    if devices == "all":
        found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if engine not in CPU_ONLY else []
        return found or ["cpu"]
    return [device if device == "auto" else find_device(device, engine) for device in devices.split(",")]


class Selection:
    """The available engines for one checkpoint on one device. Exact engines are compared with the reference engine."""

    def __init__(self, checkpoint: Checkpoint, device: str, threads: int, on_fallback: OnFallback | None) -> None:
        self.checkpoint, self.device, self.threads, self.on_fallback = checkpoint, device, threads, on_fallback
        self.verification = Verification(checkpoint, IMAGES_ON_CPU if device == "cpu" else IMAGES)
        self.reported: set[tuple[str, str]] = set()

    def combined(
        self, modes: Sequence[Mode], find: Callable[[Mode], Engine], costs: dict[int, Costs] | None = None
    ) -> Engine:
        """Return the engine that ``find`` returns for a mode, or for two modes a switch between the two engines.

        Without ``costs``, the switch measures them.
        """
        with closing_on_error() as opened:
            engines = [opened.enter_context(closing(find(mode))) for mode in modes]
            if len(engines) == 1:
                return engines[0]
            shape, share = image_shape(self.checkpoint), expected_share(self.checkpoint)
            return RoutingSwitch(engines[0], engines[1], shape, share, costs)

    def repeated(self, choice: Choice) -> Engine:
        """Return the engine of an earlier choice, without measuring or comparing it again. Raises EngineError."""

        def build_kept(mode: Mode) -> Engine:
            kept = choice.modes[mode]
            return build(self.checkpoint, kept.engine, self.device, self.threads, mode, kept.most_spread)

        # Sorted, "branch" comes before "mask".
        engine = self.combined(sorted(choice.modes), build_kept, choice.routing_costs)
        names = ", ".join(f"{kept.engine} for mode {mode}" for mode, kept in choice.modes.items())
        log.info("auto uses the engines of the last start: %s", names)
        return engine

    def fastest(self, mode: Mode) -> Engine:
        """Return the engine with the shortest time for one image that executes the checkpoint's mean share of blocks.

        The engines are timed in turns, and the best turn counts. This reduces the effect of other processes.
        """
        best: dict[str, tuple[float, Engine]] = {}
        for turn in range(TURNS):
            for name in self.candidates(mode) if turn == 0 else list(best):
                try:
                    with closing_on_error() as opened:
                        engine = best[name][1] if name in best else self.verified(name, mode)
                        opened.enter_context(closing(engine))
                        taken = self.seconds(engine, mode)
                        best[name] = min(best.get(name, (taken, engine)), (taken, engine), key=lambda pair: pair[0])
                except EngineError as error:
                    best.pop(name, None)
                    self.report_fallback(name, str(error))
        if not best:
            return self.verified(LAST_RESORT, mode)
        timed = sorted(best.values(), key=lambda pair: pair[0])
        times = ", ".join(f"{engine.name} {taken * 1e3:.3f} ms" for taken, engine in timed)
        log.info("auto selects %s on %s for mode %s: %s per image", timed[0][1].name, self.device, mode, times)
        for _, slower in timed[1:]:
            slower.close()
        return timed[0][1]

    def seconds(self, engine: Engine, mode: Mode) -> float:
        """Return the time of one image that executes the checkpoint's expected share of the gated blocks.

        No image is known to execute this share. So the time is interpolated between no block and every block.
        """
        image = np.random.default_rng(0).standard_normal((1, *image_shape(self.checkpoint)), np.float32)
        if mode == "mask" or self.checkpoint.network.gate_kind is None:
            return median_seconds(engine, image, np.zeros(1, np.float32))
        skipping, executing = (median_seconds(engine, image, np.full(1, threshold, np.float32)) for threshold in (1, 0))
        share = expected_share(self.checkpoint)
        return (1 - share) * skipping + share * executing

    def candidates(self, mode: Mode) -> list[str]:
        """Return the names of the engines that have this mode and suit the device and the network."""
        names = [name for name in CANDIDATES[self.device.partition(":")[0]] if mode in MODES[name]]
        if self.checkpoint.config.quantization is None and "native_int16" in names:
            names.remove("native_int16")
        if "persistent" in names:
            from models.engines.persistent.engine import suits

            _, height, width = image_shape(self.checkpoint)
            if not suits(fold(self.checkpoint.network), height, width):
                names.remove("persistent")
        return names

    def verified(self, name: str, mode: Mode) -> Engine:
        """Return the engine ``name``. An exact one has matched the reference engine.

        Raises EngineError.
        """
        if (name, mode) in CHECKED_IN_SUBPROCESS and self.checkpoint.folder.is_dir():
            try:
                check_in_subprocess(self.checkpoint.folder, name, self.device, mode)
            except DeviceTaken as error:
                log.warning("%s is checked in this process only, because no other may use the GPU: %s", name, error)
        with closing_on_error() as opened:
            engine = opened.enter_context(closing(build(self.checkpoint, name, self.device, self.threads, mode)))
            if name not in COMPARED_ELSEWHERE and (name, self.device) != ("reference", "cpu"):
                # On a GPU an engine has its own code or graph for each size. All of them are compared.
                _, height, width = image_shape(self.checkpoint)
                self.verification.check(engine, () if self.device == "cpu" else recorded_sizes(height, width))
            return engine

    def report_fallback(self, name: str, reason: str) -> None:
        """Log an unavailable engine and call ``on_fallback``.

        This happens once, even if both modes fail for the same reason.
        """
        if (name, reason) not in self.reported:
            self.reported.add((name, reason))
            log.warning("engine %s is unavailable, auto falls back: %s", name, reason)
            if self.on_fallback is not None:
                self.on_fallback(name, reason)


def image_shape(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Return the shape (3, H, W) of the checkpoint's input images."""
    spec = checkpoint.config.input
    return 3, spec.height, spec.width


def expected_share(checkpoint: Checkpoint) -> float:
    """Return the share of executed gated blocks in the checkpoint's evaluation, or 0.5 without an evaluation."""
    evaluation = checkpoint.config.evaluation
    return float(np.mean(evaluation.execution_rate)) if evaluation and evaluation.execution_rate else 0.5
