"""Choosing an engine: by name, or by a short measurement."""

import logging
from typing import get_args

import numpy as np
import torch

from models.checkpoint import Checkpoint
from models.engines.eager import TorchEngine
from models.engines.engine import Engine, EngineError
from models.engines.folding import fold
from models.engines.native import NativeEngine, NativeUnavailable
from models.engines.onnx_session import OnnxRuntimeEngine
from models.engines.reference import ReferenceEngine
from models.engines.routing_switch import RoutingSwitch, seconds
from models.engines.threads import available_cpus
from models.macs import Mode

MODES: dict[str, tuple[Mode, ...]] = {
    "native": ("branch",),
    "onnxruntime": ("branch", "mask"),
    "torch": ("branch", "mask"),
    "reference": ("mask",),
}

log = logging.getLogger(__name__)


def select(checkpoint: Checkpoint, name: str, device: str, threads: int | None, routing: str) -> Engine:
    """See ``load_engine``. Where auto finds the native engine fastest, ONNX Runtime is its masked alternative."""
    if name not in (*MODES, "auto"):
        raise EngineError(f"no engine is called {name!r}; choose auto, {', '.join(MODES)}")
    if routing not in (*get_args(Mode), "auto"):
        raise EngineError(f"no routing is called {routing!r}; choose auto, {', '.join(get_args(Mode))}")
    device = find_device(device, name)
    threads = threads or available_cpus()
    wanted: Mode | None = None if routing == "auto" else "mask" if routing == "mask" else "branch"
    if name == "auto":
        engine = fastest(checkpoint, device, threads, wanted or "branch")
    else:
        engine = build(checkpoint, name, device, threads, wanted or MODES[name][0])
    masking = engine.name if "mask" in MODES[engine.name] else "onnxruntime"
    if wanted is not None or checkpoint.network.gate_kind is None or (name != "auto" and masking != engine.name):
        return engine
    if MODES[engine.name] == ("mask",):
        return engine
    masked = build(checkpoint, masking, engine.device, threads, "mask")
    return RoutingSwitch(engine, masked, image_shape(checkpoint), expected_share(checkpoint))


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


def build(checkpoint: Checkpoint, name: str, device: str, threads: int, mode: Mode) -> Engine:
    """Return the engine called ``name`` in one mode. Raises EngineError where it cannot be had."""
    if mode not in MODES[name]:
        others = [other for other, modes in MODES.items() if mode in modes]
        raise EngineError(f"the engine {name} has no routing {mode!r}; choose {' or '.join(others)}")
    if name == "reference":
        return ReferenceEngine(checkpoint.network, device)
    folded = fold(checkpoint.network)
    if name == "torch":
        return TorchEngine(folded, device, mode, threads)
    if name == "onnxruntime":
        return OnnxRuntimeEngine(folded, device, mode, threads)
    if device != "cpu":
        raise EngineError(f"the native engine runs on the CPU only, not on {device}; choose the engine torch")
    try:
        return NativeEngine(folded, threads)
    except NativeUnavailable as error:
        raise EngineError(f"{error}. Or choose the engine onnxruntime") from error


def fastest(checkpoint: Checkpoint, device: str, threads: int, mode: Mode) -> Engine:
    """Return the engine that answers a single image first, of those to be had here."""
    # On CUDA, ONNX Runtime waits for the device at every gate: torch has never been behind it.
    candidates = ("native", "onnxruntime") if device == "cpu" else ("torch",)
    image = np.random.default_rng(0).standard_normal((1, *image_shape(checkpoint)), np.float32)
    threshold = np.array([checkpoint.config.execute_threshold], np.float32)
    timed: list[tuple[float, Engine]] = []
    for name in candidates:
        if mode not in MODES[name]:
            continue
        try:
            engine = build(checkpoint, name, device, threads, mode)
        except EngineError as error:
            log.warning("auto does without the engine %s: %s", name, error)
            continue
        timed.append((seconds(engine, image, threshold), engine))
    if not timed:
        return build(checkpoint, "torch", device, threads, mode)
    timed.sort(key=lambda pair: pair[0])
    for _, slower in timed[1:]:
        slower.close()
    return timed[0][1]


def image_shape(checkpoint: Checkpoint) -> tuple[int, int, int]:
    spec = checkpoint.config.input
    return 3, spec.height, spec.width


def expected_share(checkpoint: Checkpoint) -> float:
    """Return the share of gated blocks that the checkpoint's evaluation executed; a half without one."""
    evaluation = checkpoint.config.evaluation
    return float(np.mean(evaluation.execution_rate)) if evaluation and evaluation.execution_rate else 0.5
