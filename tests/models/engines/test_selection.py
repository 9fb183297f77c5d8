"""The engine that `load_engine` returns."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.checkpoint import Checkpoint, Quantization
from models.engines import factory, load_engine, routing_switch, selection
from models.engines.folding import fold
from models.engines.onnx.engine import OnnxRuntimeEngine
from models.engines.protocol import Engine, EngineError, Routed
from models.engines.routing_switch import Costs, RoutingSwitch

NO_CUDA = not torch.cuda.is_available()


@pytest.fixture(scope="module")
def checkpoint(varied_checkpoint: Callable[[str], Checkpoint]) -> Checkpoint:
    return varied_checkpoint("cifar10_rnn_gate_38")


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object) -> None:
        raise EngineError("no C++ compiler here. Or choose the engine onnxruntime")

    monkeypatch.setattr(factory, "NativeEngine", unavailable)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The measured times by engine."""
    measured = {"native": 1.0, "native_int16": 0.5, "onnxruntime": 2.0}
    monkeypatch.setattr(selection, "median_seconds", lambda engine, *_: measured[engine.name])
    return measured


def test_auto_selects_the_fastest(checkpoint: Checkpoint, times: dict[str, float]) -> None:
    assert load_engine(checkpoint, device="cpu", threads=1, routing="branch").name == "native"
    times["native"] = 3.0
    assert load_engine(checkpoint, device="cpu", threads=1, routing="branch").name == "onnxruntime"


class Repeated:
    """An engine that runs each batch several times and so is slower."""

    device = "cpu"

    def __init__(self, engine: Engine, times: int) -> None:
        self.engine, self.times, self.name = engine, times, f"{engine.name} x {times}"

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        for _ in range(self.times - 1):
            self.engine.run(images, thresholds)
        return self.engine.run(images, thresholds)

    def close(self) -> None:
        self.engine.close()


@pytest.mark.parametrize("architecture", ["imagenet_rnn_gate_18", "imagenet_rnn_gate_50"])
@pytest.mark.parametrize("slow", ["native", "onnxruntime"])
def test_auto_leaves_out_a_slower_engine(
    architecture: str, slow: str, varied_checkpoint: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both candidates are the same engine, and one runs twice. So it is slower on any machine."""
    plain = factory.build

    def build(checkpoint: Checkpoint, name: str, *others: Any) -> Engine:
        return Repeated(plain(checkpoint, "native", *others), 2 if name == slow else 1)

    monkeypatch.setattr(selection, "build", build)
    engine = load_engine(varied_checkpoint(architecture), device="cpu", threads=1, routing="branch")
    assert engine.name == "native x 1"
    engine.close()


@pytest.mark.parametrize(("share", "fastest"), [(0.1, "native"), (0.9, "onnxruntime")])
def test_auto_compares_at_the_checkpoints_own_share(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, share: float, fastest: str
) -> None:
    """One engine is faster if few blocks are executed, the other if many are."""
    times = {"native": (1.0, 5.0), "onnxruntime": (2.0, 4.0)}
    monkeypatch.setattr(selection, "median_seconds", lambda engine, _, limit: times[engine.name][int(limit[0] == 0)])
    monkeypatch.setattr(selection, "expected_share", lambda _: share)
    assert load_engine(checkpoint, device="cpu", threads=1, routing="branch").name == fastest


def test_auto_takes_integers_if_the_version_is_quantised(checkpoint: Checkpoint, times: dict[str, float]) -> None:
    limits = [[1.0] * len(block.residual) for block in fold(checkpoint.network).blocks]
    figures = dict.fromkeys(("execute_threshold", "decisions_changed", "labels_changed", "accuracy"), 0.5)
    quantization = Quantization(activation_limits=limits, calibration_images=1, images=1, float_accuracy=0.5, **figures)
    quantized = replace(checkpoint, config=checkpoint.config.model_copy(update={"quantization": quantization}))
    assert load_engine(quantized, device="cpu", threads=1, routing="branch").name == "native_int16"
    times["native_int16"] = 1.5
    assert load_engine(quantized, device="cpu", threads=1, routing="branch").name == "native"


def test_auto_compares_the_native_engine_with_masking(
    checkpoint: Checkpoint, times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert times["native"] < times["onnxruntime"]
    # Masking is the faster mode if every block is executed.
    monkeypatch.setattr(routing_switch, "calibrate", lambda *_: {1: Costs((1.0, 2.0, 3.0), 2.5, "branch")})
    engine = load_engine(checkpoint, device="cpu", threads=1)
    try:
        assert isinstance(engine, RoutingSwitch)
        assert (engine.engines["branch"].name, engine.engines["mask"].name) == ("native", "onnxruntime")
    finally:
        engine.close()


@pytest.mark.usefixtures("no_native")
def test_auto_falls_back_from_a_missing_engine(
    checkpoint: Checkpoint, times: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine = load_engine(checkpoint, device="cpu", threads=1, routing="branch")
    assert engine.name == "onnxruntime"
    assert times
    assert "no C++ compiler here" in caplog.text


@pytest.mark.parametrize("fails", ["build", "median_seconds"])
def test_auto_falls_back_from_a_failing_engine(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    plain, closed = getattr(selection, fails), []

    def failing(*arguments: object) -> object:
        if isinstance(arguments[0], OnnxRuntimeEngine) or (fails == "build" and arguments[1] == "onnxruntime"):
            raise MemoryError("no memory")
        return plain(*arguments)

    monkeypatch.setattr(selection, fails, failing)
    monkeypatch.setattr(OnnxRuntimeEngine, "close", lambda engine: closed.append(engine.name))
    assert load_engine(checkpoint, device="cpu", threads=1, routing="branch").name == "native"
    assert "engine onnxruntime is unavailable, auto falls back: MemoryError: no memory" in caplog.text
    assert len(closed) == (fails == "median_seconds")


def test_the_branching_engine_is_closed_if_masking_fails(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, closed = factory.build, []

    def failing(*arguments: object) -> Engine:
        if arguments[-1] == "mask":
            raise MemoryError("no memory")
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "build", failing)
    monkeypatch.setattr(OnnxRuntimeEngine, "close", lambda engine: closed.append(engine.mode))
    with pytest.raises(EngineError, match="MemoryError: no memory"):
        load_engine(checkpoint, "onnxruntime", "cpu", threads=1)
    assert closed == ["branch"]


@pytest.mark.usefixtures("no_native")
def test_an_engine_chosen_by_name_does_not_fall_back(checkpoint: Checkpoint) -> None:
    with pytest.raises(EngineError, match=r"no C\+\+ compiler here.*choose the engine onnxruntime"):
        load_engine(checkpoint, "native", "cpu", threads=1)


def test_routing_auto_gives_both_modes(checkpoint: Checkpoint) -> None:
    engine = load_engine(checkpoint, "onnxruntime", "cpu", threads=1)
    assert isinstance(engine, RoutingSwitch)
    images = np.zeros((2, 3, 32, 32), np.float32)
    thresholds = np.full(2, 0.5, np.float32)
    outputs = [each.run(images, thresholds) for each in engine.engines.values()]
    np.testing.assert_allclose(outputs[0].logits, outputs[1].logits, atol=1e-5)
    assert [output.mode for output in outputs] == ["branch", "mask"]
    assert engine.run(images, thresholds).mode == engine.mode(2)
    engine.close()


def test_a_plain_network_needs_no_switch(varied_checkpoint: Callable[[str], Checkpoint]) -> None:
    engine = load_engine(varied_checkpoint("cifar10_resnet_38"), "torch", "cpu", threads=1)
    assert not isinstance(engine, RoutingSwitch)
    assert engine.run(np.zeros((1, 3, 32, 32), np.float32), np.ones(1, np.float32)).executed.all()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"engine": "tensorflow"}, "unknown engine 'tensorflow'; choose auto, native"),
        ({"routing": "guess"}, "unknown routing 'guess'; choose auto, branch, mask"),
        ({"device": "tpu"}, "unknown device 'tpu'; choose auto, cpu"),
        ({"device": "cuda:x"}, "unknown device 'cuda:x'"),
        ({"engine": "native", "routing": "mask"}, "native has no routing 'mask'; choose onnxruntime or torch"),
        ({"engine": "reference", "routing": "branch"}, "reference has no routing 'branch'; choose native"),
        pytest.param(
            {"device": "cuda"},
            "no cuda here.*choose the device cpu",
            marks=pytest.mark.skipif(not NO_CUDA, reason="there is a CUDA device"),
        ),
    ],
)
def test_an_impossible_choice_names_the_others(checkpoint: Checkpoint, choice: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        load_engine(checkpoint, **{"device": "cpu", "threads": 1} | choice)  # type: ignore[arg-type]
