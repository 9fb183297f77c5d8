"""Which engine `load_engine` gives."""

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch

from models.checkpoint import Checkpoint
from models.engines import load_engine, selection
from models.engines.native.engine import NativeUnavailable
from models.engines.onnx.engine import OnnxRuntimeEngine
from models.engines.protocol import Engine, EngineError
from models.engines.routing_switch import RoutingSwitch

NO_CUDA = not torch.cuda.is_available()


@pytest.fixture(scope="module")
def checkpoint(lively_checkpoint: Callable[[str], Checkpoint]) -> Checkpoint:
    return lively_checkpoint("cifar10_rnn_gate_38")


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object) -> None:
        raise NativeUnavailable("no C++ compiler here")

    monkeypatch.setattr(selection, "NativeEngine", unavailable)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the measurement says, by engine."""
    said = {"native": 1.0, "onnxruntime": 2.0}
    monkeypatch.setattr(selection, "seconds", lambda engine, *_: said[engine.name])
    return said


def test_auto_takes_the_fastest(checkpoint: Checkpoint, times: dict[str, float]) -> None:
    assert load_engine(checkpoint, device="cpu", threads=1, routing="branch").name == "native"
    times["native"] = 3.0
    assert load_engine(checkpoint, device="cpu", threads=1, routing="branch").name == "onnxruntime"


def test_auto_weighs_the_native_engine_against_masking_too(checkpoint: Checkpoint, times: dict[str, float]) -> None:
    assert times["native"] < times["onnxruntime"]
    engine = load_engine(checkpoint, device="cpu", threads=1)
    try:
        assert isinstance(engine, RoutingSwitch)
        assert (engine.engines["branch"].name, engine.engines["mask"].name) == ("native", "onnxruntime")
    finally:
        engine.close()


@pytest.mark.usefixtures("no_native")
def test_auto_does_without_what_is_missing(
    checkpoint: Checkpoint, times: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine = load_engine(checkpoint, device="cpu", threads=1, routing="branch")
    assert engine.name == "onnxruntime"
    assert times
    assert "no C++ compiler here" in caplog.text


@pytest.mark.parametrize("fails", ["build", "seconds"])
def test_auto_does_without_what_fails_on_the_way(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    plain, closed = getattr(selection, fails), []

    def failing(*asked: object) -> object:
        if isinstance(asked[0], OnnxRuntimeEngine) or (fails == "build" and asked[1] == "onnxruntime"):
            raise MemoryError("no room")
        return plain(*asked)

    monkeypatch.setattr(selection, fails, failing)
    monkeypatch.setattr(OnnxRuntimeEngine, "close", lambda engine: closed.append(engine.name))
    assert load_engine(checkpoint, device="cpu", threads=1, routing="branch").name == "native"
    assert "the engine onnxruntime: MemoryError: no room" in caplog.text
    assert len(closed) == (fails == "seconds")


def test_where_masking_fails_the_engine_that_branches_is_closed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, closed = selection.build, []

    def failing(*asked: object) -> Engine:
        if asked[-1] == "mask":
            raise MemoryError("no room")
        return plain(*asked)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "build", failing)
    monkeypatch.setattr(OnnxRuntimeEngine, "close", lambda engine: closed.append(engine.mode))
    with pytest.raises(EngineError, match="MemoryError: no room"):
        load_engine(checkpoint, "onnxruntime", "cpu", threads=1)
    assert closed == ["branch"]


@pytest.mark.usefixtures("no_native")
def test_an_engine_asked_for_by_name_must_be_there(checkpoint: Checkpoint) -> None:
    with pytest.raises(EngineError, match=r"no C\+\+ compiler here.*choose the engine onnxruntime"):
        load_engine(checkpoint, "native", "cpu", threads=1)


def test_both_ways_where_routing_is_open(checkpoint: Checkpoint) -> None:
    engine = load_engine(checkpoint, "onnxruntime", "cpu", threads=1)
    assert isinstance(engine, RoutingSwitch)
    images = np.zeros((2, 3, 32, 32), np.float32)
    thresholds = np.full(2, 0.5, np.float32)
    answers = [each.run(images, thresholds) for each in engine.engines.values()]
    np.testing.assert_allclose(answers[0].logits, answers[1].logits, atol=1e-5)
    assert [answer.mode for answer in answers] == ["branch", "mask"]
    assert engine.run(images, thresholds).mode == engine.mode(2)
    engine.close()


def test_a_plain_network_has_nothing_to_switch(lively_checkpoint: Callable[[str], Checkpoint]) -> None:
    engine = load_engine(lively_checkpoint("cifar10_resnet_38"), "torch", "cpu", threads=1)
    assert not isinstance(engine, RoutingSwitch)
    assert engine.run(np.zeros((1, 3, 32, 32), np.float32), np.ones(1, np.float32)).executed.all()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"engine": "tensorflow"}, "no engine is called 'tensorflow'; choose auto, native"),
        ({"routing": "guess"}, "no routing is called 'guess'; choose auto, branch, mask"),
        ({"device": "tpu"}, "no device is called 'tpu'; choose auto, cpu"),
        ({"device": "cuda:x"}, "no device is called 'cuda:x'"),
        ({"engine": "native", "routing": "mask"}, "native has no routing 'mask'; choose onnxruntime or torch"),
        ({"engine": "reference", "routing": "branch"}, "reference has no routing 'branch'; choose native"),
        pytest.param(
            {"device": "cuda"},
            "no cuda here.*choose the device cpu",
            marks=pytest.mark.skipif(not NO_CUDA, reason="there is a CUDA device"),
        ),
    ],
)
def test_what_cannot_be_had_says_what_can(checkpoint: Checkpoint, choice: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        load_engine(checkpoint, **{"device": "cpu", "threads": 1} | choice)  # type: ignore[arg-type]
