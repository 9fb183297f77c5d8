"""Choosing an engine: by name, or by a short measurement of those that are to be had and answer rightly."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import get_args

import numpy as np
import torch

from models.checkpoint import Checkpoint
from models.cpus import available_cpus
from models.engines.folding import fold
from models.engines.native.engine import NativeEngine
from models.engines.onnx.engine import OnnxRuntimeEngine
from models.engines.protocol import Engine, EngineError
from models.engines.routing_switch import RoutingSwitch, seconds
from models.engines.torch.engine import TorchEngine
from models.engines.torch.reference import ReferenceEngine
from models.engines.trial import try_apart
from models.engines.verification import Verification
from models.macs import Mode

MODES: dict[str, tuple[Mode, ...]] = {
    "native": ("branch",),
    "onnxruntime": ("branch", "mask"),
    "persistent": ("branch",),
    "cuda_graph": ("branch", "mask"),
    "torch": ("branch", "mask"),
    "reference": ("mask",),
}
# On CUDA, ONNX Runtime waits for the device at every gate.
CANDIDATES = {"cpu": ("native", "onnxruntime"), "cuda": ("persistent", "cuda_graph")}
TRIED_APART = {("persistent", "branch"), ("cuda_graph", "branch")}
"""A kernel of our own, and conditional nodes: both can hang or end the use of the GPU where they are at fault."""
LAST_RESORT = "torch"

OnFallback = Callable[[str, str], None]
"""Told the name of an engine that auto does without, and why."""

log = logging.getLogger(__name__)


def select(
    checkpoint: Checkpoint,
    name: str,
    device: str,
    threads: int | None,
    routing: str,
    on_fallback: OnFallback | None = None,
) -> Engine:
    """See ``load_engine``. Under auto, branching and masking may be two engines."""
    if name not in (*MODES, "auto"):
        raise EngineError(f"no engine is called {name!r}; choose auto, {', '.join(MODES)}")
    if routing not in (*get_args(Mode), "auto"):
        raise EngineError(f"no routing is called {routing!r}; choose auto, {', '.join(get_args(Mode))}")
    selection = Selection(checkpoint, find_device(device, name), threads or available_cpus(), on_fallback)
    modes: tuple[Mode, ...] = ("mask",) if routing == "mask" else ("branch",)
    if routing == "auto":
        modes = ("branch", "mask") if name == "auto" else MODES[name]
    if checkpoint.network.gate_kind is None:
        modes = modes[:1]
    find = selection.fastest if name == "auto" else partial(selection.verified, name)
    with whole_or_not() as opened:
        engines = [opened.enter_context(closing(find(mode))) for mode in modes]
        if len(engines) == 1:
            return engines[0]
        return RoutingSwitch(engines[0], engines[1], image_shape(checkpoint), expected_share(checkpoint))


def find_device(device: str, engine: str) -> str:
    """Return cpu or cuda:N. Raises EngineError where torch sees no such device."""
    kind, _, index = device.partition(":")
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() and engine != "native" else "cpu"
    if device == "cpu":
        return device
    if kind != "cuda" or not (index or "0").isdecimal():
        raise EngineError(f"no device is called {device!r}; choose auto, cpu, cuda or cuda:N")
    if int(index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"there is no {device} here: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA "
            "devices. Give the container a GPU and install a CUDA build of torch, or choose the device cpu."
        )
    return f"cuda:{index or 0}"


class Selection:
    """The engines to be had for one checkpoint on one device. On a GPU, each must answer as the reference does."""

    def __init__(self, checkpoint: Checkpoint, device: str, threads: int, on_fallback: OnFallback | None) -> None:
        self.checkpoint, self.device, self.threads, self.on_fallback = checkpoint, device, threads, on_fallback
        self.verification = None if device == "cpu" else Verification(checkpoint)
        self.refused: set[tuple[str, str]] = set()

    def fastest(self, mode: Mode) -> Engine:
        """Return the engine that answers a single image first."""
        image = np.random.default_rng(0).standard_normal((1, *image_shape(self.checkpoint)), np.float32)
        threshold = np.array([self.checkpoint.config.execute_threshold], np.float32)
        timed: list[tuple[float, Engine]] = []
        for name in self.candidates(mode):
            try:
                with whole_or_not() as opened:
                    engine = opened.enter_context(closing(self.verified(name, mode)))
                    timed.append((seconds(engine, image, threshold), engine))
            except EngineError as error:
                self.refuse(name, str(error))
        if not timed:
            return self.verified(LAST_RESORT, mode)
        timed.sort(key=lambda pair: pair[0])
        times = ", ".join(f"{engine.name} {taken * 1e3:.3f} ms" for taken, engine in timed)
        log.info("auto takes %s on %s to %s: %s an image", timed[0][1].name, self.device, mode, times)
        for _, slower in timed[1:]:
            slower.close()
        return timed[0][1]

    def candidates(self, mode: Mode) -> list[str]:
        names = [name for name in CANDIDATES[self.device.partition(":")[0]] if mode in MODES[name]]
        if "persistent" in names:
            from models.engines.persistent.engine import suits

            _, height, width = image_shape(self.checkpoint)
            if not suits(fold(self.checkpoint.network), height, width):
                names.remove("persistent")
        return names

    def verified(self, name: str, mode: Mode) -> Engine:
        """Return the engine called ``name``, on a GPU having answered as the reference does. Raises EngineError."""
        if self.verification and (name, mode) in TRIED_APART and self.checkpoint.folder.is_dir():
            try_apart(self.checkpoint.folder, name, self.device, mode)
        with whole_or_not() as opened:
            engine = opened.enter_context(closing(build(self.checkpoint, name, self.device, self.threads, mode)))
            if self.verification:
                self.verification.check(engine)
            return engine

    def refuse(self, name: str, reason: str) -> None:
        """Do without an engine: said once, though each mode may find the same reason."""
        if (name, reason) not in self.refused:
            self.refused.add((name, reason))
            log.warning("auto does without the engine %s: %s", name, reason)
            if self.on_fallback is not None:
                self.on_fallback(name, reason)


@contextmanager
def whole_or_not() -> Iterator[ExitStack]:
    """Close the engines that are entered where anything raises, and raise EngineError with a reason of one line:
    compilers, drivers and libraries have exceptions of their own.
    """
    with ExitStack() as opened:
        try:
            yield opened
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(describe(error)) from error
        opened.pop_all()


def build(checkpoint: Checkpoint, name: str, device: str, threads: int, mode: Mode) -> Engine:
    """Return the engine called ``name`` in one mode. Raises EngineError where it cannot be had."""
    if mode not in MODES[name]:
        elsewhere = CANDIDATES["cuda"] if device == "cpu" else ("native",)
        others = [other for other, modes in MODES.items() if mode in modes and other not in elsewhere]
        raise EngineError(f"the engine {name} has no routing {mode!r}; choose {' or '.join(others)}")
    if name == "reference":
        return ReferenceEngine(checkpoint.network, device)
    folded = fold(checkpoint.network)
    if name == "torch":
        return TorchEngine(folded, device, mode, threads)
    if name == "onnxruntime":
        return OnnxRuntimeEngine(folded, device, mode, threads)
    if name in CANDIDATES["cuda"]:
        if device == "cpu":
            raise EngineError(f"the engine {name} runs on a GPU only; choose the engine auto")
        from models.engines.cuda_graph import engine as cuda_graph
        from models.engines.persistent import engine as persistent

        if name == "persistent":
            return persistent.PersistentEngine(folded, device)
        return cuda_graph.CudaGraphEngine(folded, device, mode)
    if device != "cpu":
        raise EngineError(f"the native engine runs on the CPU only, not on {device}; choose the engine torch")
    return NativeEngine(folded, threads)


def describe(error: Exception) -> str:
    """Return a reason of one line; those that this code did not raise come with their type."""
    if isinstance(error, EngineError):
        return str(error)
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'without a message')}"


def image_shape(checkpoint: Checkpoint) -> tuple[int, int, int]:
    spec = checkpoint.config.input
    return 3, spec.height, spec.width


def expected_share(checkpoint: Checkpoint) -> float:
    """Return the share of gated blocks that the checkpoint's evaluation executed; a half without one."""
    evaluation = checkpoint.config.evaluation
    return float(np.mean(evaluation.execution_rate)) if evaluation and evaluation.execution_rate else 0.5
