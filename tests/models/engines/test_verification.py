"""The check of an engine on a GPU before it serves, and the fallback from engines that fail it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import SHIPPED
from models.checkpoint import Checkpoint, read_checkpoint
from models.engines import factory, load_engine, routing_switch, selection
from models.engines.cuda_graph import engine as cuda_graph
from models.engines.cuda_graph.engine import CudaGraphEngine
from models.engines.folding import FoldedNetwork, fold
from models.engines.persistent import engine as persistent
from models.engines.protocol import Engine, EngineError, Routed
from models.engines.routing_switch import RoutingSwitch
from models.engines.selection import Selection
from models.engines.subprocess_check import DeviceTaken
from models.engines.torch.engine import TorchEngine
from models.engines.verification import IMAGES, Disagreement, Verification
from models.macs import Mode
from models.model_repository import find_version
from models.preprocessing import normalisation

Change = Callable[[Routed], Routed]


@pytest.fixture(scope="module", params=["cifar10_rnn_gate_38", "cifar10_feedforward_38", "cifar10_resnet_38"])
def checkpoint(request: pytest.FixtureRequest, varied_checkpoint: Callable[[str], Checkpoint]) -> Checkpoint:
    return varied_checkpoint(request.param)


@pytest.fixture(scope="module")
def verification(checkpoint: Checkpoint) -> Verification:
    return Verification(checkpoint)


class Faulty:
    """An engine whose outputs are changed. With ``size``, only those of batches of that size."""

    name, device = "persistent", "cpu"

    def __init__(self, engine: Engine, change: Change, size: int | None = None) -> None:
        self.engine, self.change, self.size, self.closed = engine, change, size, False

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        routed = self.engine.run(images, thresholds)
        return self.change(routed) if self.size in (None, len(images)) else routed

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["mask", "branch"])
def test_correct_engines_pass(
    verification: Verification, checkpoint: Checkpoint, mode: Mode, dtype: torch.dtype
) -> None:
    scales = normalisation(checkpoint.config.input)
    verification.check(CudaGraphEngine(fold(checkpoint.network), "cpu", mode, dtype, scales))


def flip_last_decision(routed: Routed) -> Routed:
    executed = routed.executed.copy()
    executed[0, -1] ^= True
    return replace(routed, executed=executed)


def shift_probability(routed: Routed) -> Routed:
    probability = routed.probability.copy()
    probability[-1, 0] += 0.05
    return replace(routed, probability=probability)


def swap_images(routed: Routed) -> Routed:
    return replace(routed, logits=routed.logits[::-1].copy())


def shift_logit(routed: Routed) -> Routed:
    logits = routed.logits.copy()
    logits[-1, -1] += 0.05 * np.abs(logits[-1]).max()
    return replace(routed, logits=logits)


def make_nan(routed: Routed) -> Routed:
    return replace(routed, logits=routed.logits * np.nan)


WRONG: dict[str, tuple[Change, int | None, str]] = {
    "decision": (flip_last_decision, None, r"gate \d+: .* but the reference"),
    "decision of an image alone": (flip_last_decision, 1, r"image 0 of 1, gate \d+"),
    "probability": (shift_probability, None, r"gate 0: probability .* but the reference has"),
    "logit": (shift_logit, None, r"logits differ by [\d.]+%"),
    "order of images": (swap_images, IMAGES, r"logits differ by [\d.]+%"),
    "not a number": (make_nan, None, "not finite"),
    "shape": (lambda routed: replace(routed, logits=routed.logits[:, 1:]), None, r"shape \(5, 9\)"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("checkpoint", ["cifar10_rnn_gate_38"], indirect=True)
def test_wrong_outputs_are_found(verification: Verification, checkpoint: Checkpoint, wrong: str) -> None:
    change, size, message = WRONG[wrong]
    with pytest.raises(Disagreement, match=message):
        verification.check(Faulty(TorchEngine(fold(checkpoint.network)), change, size))


def test_cases_have_different_routes(verification: Verification, checkpoint: Checkpoint) -> None:
    own, *others = (case.expected.executed for case in verification.cases)
    if checkpoint.network.gate_kind is None:
        assert own.all() and not others
        return
    everything, nothing = others
    assert everything.all() and not nothing.any()
    assert len(np.unique(own, axis=0)) > 1


@pytest.fixture
def cuda_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that there is a GPU. The engines for cuda:0 run on the CPU."""
    graph = CudaGraphEngine

    def build_eager(folded: FoldedNetwork, _: str, mode: Mode, threads: int) -> TorchEngine:
        return TorchEngine(folded, "cpu", mode, threads)

    monkeypatch.setattr(selection, "find_device", lambda *_: "cuda:0")
    monkeypatch.setattr(selection, "available_cpus", lambda: 1)
    monkeypatch.setattr(routing_switch, "SIZES", (1, 2))
    monkeypatch.setattr(selection, "recorded_sizes", lambda *_: [2])
    monkeypatch.setattr(factory, "TorchEngine", build_eager)
    monkeypatch.setattr(
        cuda_graph,
        "CudaGraphEngine",
        lambda folded, _, mode, normalisation: graph(folded, "cpu", mode, torch.float32, normalisation),
    )


@pytest.fixture
def rnn_checkpoint(varied_checkpoint: Callable[[str], Checkpoint]) -> Checkpoint:
    return varied_checkpoint("cifar10_rnn_gate_38")


def raising(*_: object, **__: object) -> Engine:
    raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture\nand more lines")


def unavailable(*_: object) -> Engine:
    raise EngineError("cuda-core is not installed")


def faulty(change: Change) -> Callable[..., Engine]:
    return lambda folded, *_: Faulty(TorchEngine(folded), change)


BROKEN: dict[str, tuple[Callable[..., Engine], str]] = {
    "a wrong decision": (faulty(flip_last_decision), "but the reference"),
    "wrong logits": (faulty(shift_logit), "logits differ by"),
    "a compile error": (raising, "RuntimeError: nvrtc: error: invalid value for --gpu-architecture$"),
    "a missing library": (unavailable, "^cuda-core is not installed$"),
}


@pytest.mark.usefixtures("cuda_here")
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_engine_is_reported_once_and_replaced(
    rnn_checkpoint: Checkpoint, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, reason = BROKEN[fault]
    monkeypatch.setattr(persistent, "PersistentEngine", broken)
    reported: list[tuple[str, str]] = []
    with caplog.at_level(logging.INFO):
        engine = load_engine(rnn_checkpoint, routing="branch", on_fallback=lambda *fallback: reported.append(fallback))
    assert (engine.name, getattr(engine, "mode", None)) == ("cuda_graph", "branch")
    [(name, reason_given)] = reported
    assert name == "persistent"
    assert "\n" not in reason_given
    with pytest.raises(EngineError, match=reason):
        load_engine(rnn_checkpoint, "persistent")
    [warning] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == f"engine persistent is unavailable, auto falls back: {reason_given}"
    assert "auto selects cuda_graph on cuda:0 for mode branch: cuda_graph" in caplog.text


@pytest.mark.usefixtures("cuda_here")
def test_the_fastest_correct_engine_is_selected(
    rnn_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(persistent, "PersistentEngine", faulty(lambda routed: routed))
    times = {"persistent": 0.1, "cuda_graph": 0.2}
    monkeypatch.setattr(selection, "median_seconds", lambda engine, *_: times[engine.name])
    with caplog.at_level(logging.INFO):
        engine = load_engine(rnn_checkpoint)
    assert isinstance(engine, RoutingSwitch)
    assert [each.name for each in engine.engines.values()] == ["persistent", "cuda_graph"]
    assert (
        "auto selects persistent on cuda:0 for mode branch: persistent 100.000 ms, cuda_graph 200.000 ms per image"
        in caplog.text
    )
    times["persistent"] = 0.3
    assert load_engine(rnn_checkpoint, routing="branch").name == "cuda_graph"


@pytest.mark.usefixtures("cuda_here")
def test_without_graphs_torch_serves_and_each_reason_is_reported_once(
    rnn_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistent, "PersistentEngine", unavailable)
    monkeypatch.setattr(cuda_graph, "CudaGraphEngine", raising)
    reported: list[str] = []
    engine = load_engine(rnn_checkpoint, on_fallback=lambda name, _: reported.append(name))
    assert engine.name == "torch"
    assert reported == ["persistent", "cuda_graph"]


@pytest.mark.usefixtures("cuda_here")
def test_engines_that_can_hang_are_checked_in_a_subprocess_first(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[tuple[str, str, str]] = []

    def hang(folder: Path, name: str, device: str, mode: str) -> None:
        assert folder == shipped.folder
        checked.append((name, device, mode))
        raise EngineError("its check hung and was killed after 180 s")

    shipped = read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None))
    built: list[str] = []
    monkeypatch.setattr(selection, "check_in_subprocess", hang)
    monkeypatch.setattr(persistent, "PersistentEngine", lambda *_: built.append("persistent"))
    reported: list[tuple[str, str]] = []
    engine = load_engine(shipped, on_fallback=lambda *fallback: reported.append(fallback))
    assert isinstance(engine, RoutingSwitch)
    assert [each.name for each in engine.engines.values()] == ["torch", "cuda_graph"]
    assert checked == [("persistent", "cuda:0", "branch"), ("cuda_graph", "cuda:0", "branch")]
    assert reported == [(name, "its check hung and was killed after 180 s") for name in ("persistent", "cuda_graph")]
    assert built == []


@pytest.mark.usefixtures("cuda_here")
def test_a_gpu_that_only_this_process_may_use_is_checked_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the compute mode EXCLUSIVE_PROCESS no subprocess can use it."""

    def taken(*_: object) -> None:
        raise DeviceTaken("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    shipped = read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None))
    monkeypatch.setattr(selection, "check_in_subprocess", taken)
    monkeypatch.setattr(persistent, "PersistentEngine", faulty(lambda routed: routed))
    chosen = Selection(shipped, "cuda:0", 1, None)
    assert chosen.verified("persistent", "branch").name == "persistent"
    monkeypatch.setattr(persistent, "PersistentEngine", faulty(shift_logit))
    with pytest.raises(Disagreement):
        chosen.verified("persistent", "branch")


@pytest.mark.usefixtures("cuda_here")
def test_a_gpu_whose_last_resort_is_wrong_never_serves(
    rnn_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The GPU itself is at fault. The device auto then means the CPU."""
    for module, name in ((persistent, "PersistentEngine"), (cuda_graph, "CudaGraphEngine"), (factory, "TorchEngine")):
        monkeypatch.setattr(module, name, lambda folded, *_, **__: Faulty(TorchEngine(folded), shift_logit))
    monkeypatch.setattr(selection, "CANDIDATES", selection.CANDIDATES | {"cpu": ("onnxruntime",)})
    reported: list[str] = []
    engine = load_engine(rnn_checkpoint, threads=1, routing="branch", on_fallback=lambda name, _: reported.append(name))
    assert (engine.name, engine.device) == ("onnxruntime", "cpu")
    assert reported == ["persistent", "cuda_graph", "torch"]
    assert "cuda:0 cannot serve, the device auto falls back to the CPU: its output differs" in caplog.text
    for name, device in (("auto", "cuda:0"), ("persistent", "auto")):
        with pytest.raises(Disagreement, match="logits"):
            load_engine(rnn_checkpoint, name, device, routing="branch")


@pytest.mark.usefixtures("cuda_here")
def test_imagenet_networks_are_not_offered_to_the_persistent_kernel(
    varied_checkpoint: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistent, "PersistentEngine", raising)
    reported: list[str] = []
    engine = load_engine(
        varied_checkpoint("imagenet_rnn_gate_18"), routing="branch", on_fallback=lambda name, _: reported.append(name)
    )
    assert (engine.name, reported) == ("cuda_graph", [])


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "native"])
def test_engines_are_checked_on_the_cpu(rnn_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Verification, "check", raising)
    with pytest.raises(EngineError, match="nvrtc: error"):
        load_engine(rnn_checkpoint, name, "cpu", threads=1, routing="branch")
    load_engine(rnn_checkpoint, "reference", "cpu", threads=1).close()
