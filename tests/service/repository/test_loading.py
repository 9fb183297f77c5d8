import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from models import engines
from models.checkpoint import Checkpoint
from models.engines import factory
from models.engines.protocol import Engine, EngineError, Routed
from models.engines.selection import OnFallback
from service.repository import loading
from service.repository.loaded_model import LoadedModel
from service.repository.loading import LoadError, load_version, warm_up
from service.settings import EngineOptions
from service.telemetry.metrics import Metrics
from tests.service.parts import NAME, ControlledEngine

OPTIONS = EngineOptions(engine="reference", threads=1)


class Bent:
    """An engine whose output a test changes."""

    name, device = "bent", "cpu"

    def __init__(self, engine: Engine, bend: Callable[[Routed], Routed]) -> None:
        self.engine, self.bend = engine, bend

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        return self.bend(self.engine.run(images, thresholds))

    def close(self) -> None:
        pass


def test_warm_up_runs_and_times_every_batch_size(loaded: LoadedModel) -> None:
    engine = ControlledEngine(loaded.engine)
    model = replace(loaded, engine=engine)
    warm_up(model, max_batch_size=6)
    assert model.clock.sizes == [1, 2, 4, 6]
    assert {len(batch) for batch in engine.batches} == {1, 2, 4, 6}
    for size in model.clock.sizes:
        seen = {float(batch[0]) for batch in engine.batches if len(batch) == size}
        assert {0.0, 1.0} < seen
    assert all(seconds > 0 for seconds in model.clock.warm)


def test_warm_up_infers_the_times_of_batches_that_take_long(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SLOW_S", 0.0)
    engine = ControlledEngine(loaded.engine)
    model = replace(loaded, engine=engine)
    warm_up(model, max_batch_size=6)
    assert {len(batch) for batch in engine.batches} == {1}
    assert model.clock.warm == pytest.approx([size * model.clock.warm[0] for size in (1, 2, 4, 6)])


@pytest.mark.parametrize(
    "bend",
    [
        lambda routed: replace(routed, logits=routed.logits * np.nan),
        lambda routed: replace(routed, logits=routed.logits[:, :-1]),
        lambda routed: replace(routed, probability=routed.probability[:, 1:]),
        lambda routed: replace(routed, executed=np.ones_like(routed.executed)),
        lambda routed: replace(routed, executed=np.zeros_like(routed.executed)),
    ],
)
def test_an_engine_with_wrong_output_is_not_served(loaded: LoadedModel, bend: Callable[[Routed], Routed]) -> None:
    with pytest.raises(LoadError):
        warm_up(replace(loaded, engine=Bent(loaded.engine, bend)), 2)


def test_probe_raises_what_the_engine_raises(loaded: LoadedModel) -> None:
    engine = ControlledEngine(loaded.engine)
    model = replace(loaded, engine=engine)
    model.probe()
    engine.fails = lambda _: True
    with pytest.raises(RuntimeError):
        model.probe()


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository / NAME / "1", tmp_path / NAME / "1"))


def test_loads_a_checkpoint(copy: Path) -> None:
    model = load_version(copy, OPTIONS, 2)
    assert (model.name, model.version, str(model)) == (NAME, 1, f"{NAME}/1")
    assert model.shape == (3, 32, 32)
    assert model.engine.name == "reference"


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def infinite_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    next(iter(state.values())).fill_(float("inf"))
    save_file(state, folder / "model.safetensors")


def wrong_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "cifar10_rnn_gate_74"}))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.pth")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (cut_weights, "safetensors"),
        (infinite_weights, "NaN or infinity"),
        (wrong_architecture, "architecture"),
        (no_config, "should hold"),
        (pickle_instead, "pickle"),
    ],
)
def test_damaged_checkpoint_is_refused_with_the_reason(copy: Path, harm: Callable[[Path], None], reason: str) -> None:
    harm(copy)
    with pytest.raises(LoadError, match=reason):
        load_version(copy, OPTIONS, 2)


def test_an_unavailable_engine_is_named(copy: Path) -> None:
    with pytest.raises(LoadError, match="cuda"):
        load_version(copy, EngineOptions(engine="torch", device="cuda:7"), 2)


def test_a_fallback_is_logged_with_its_reason(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Engine:
        raise EngineError("no C++ compiler here")

    monkeypatch.setattr(factory, "NativeEngine", broken)
    model = load_version(copy, EngineOptions(device="cpu", threads=1, routing="branch"), 1)
    assert (model.engine.name, model.fallbacks) == ("onnxruntime", ["native"])
    assert "engine native is unavailable, auto falls back: no C++ compiler here" in caplog.text
    metrics = Metrics()
    metrics.add_model(model, lambda: 0)
    sample = metrics.registry.get_sample_value
    labels = {"model": NAME, "version": "1"}
    assert sample("skipnet_engine_fallbacks_total", labels | {"engine": "native"}) == 1
    assert sample("skipnet_engine_fallbacks_total", labels | {"engine": "onnxruntime"}) == 0


def test_a_fallback_for_two_reasons_counts_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = engines.load_engine

    def fall_back(checkpoint: Checkpoint, *_: object, on_fallback: OnFallback, cache: object) -> Engine:  # noqa: ARG001
        on_fallback("persistent", "logits off by 0.1")
        on_fallback("persistent", "logits off by 0.2")
        return load(checkpoint, "reference", "cpu", 1)

    monkeypatch.setattr(engines, "load_engine", fall_back)
    assert load_version(copy, OPTIONS, 1).fallbacks == ["persistent"]
