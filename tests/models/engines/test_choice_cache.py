"""The choice of engines is kept between two starts, as long as checkpoint, processor and libraries are the same."""

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import CONFIG, Checkpoint, read_checkpoint, write_checkpoint
from models.engines import choice_cache, factory, load_engine, routing_switch
from models.engines.protocol import Engine, EngineError
from models.engines.routing_switch import Costs, RoutingSwitch
from models.engines.verification import Verification

IMAGES = np.zeros((2, 3, 32, 32), np.float32)
THRESHOLDS = np.full(2, 0.5, np.float32)


@pytest.fixture
def checkpoint(varied_checkpoint: Callable[[str], Checkpoint], tmp_path: Path) -> Checkpoint:
    varied = varied_checkpoint("cifar10_rnn_gate_38")
    folder = tmp_path / "repository/model/1"
    write_checkpoint(folder, varied.network, varied.config)
    return read_checkpoint(folder)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines that were compared with the reference engine."""
    names: list[str] = []
    check = Verification.check

    def note(verification: Verification, engine: Engine, sizes: Sequence[int] = ()) -> None:
        names.append(engine.name)
        check(verification, engine, sizes)

    monkeypatch.setattr(Verification, "check", note)
    return names


@pytest.fixture
def start(checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., Engine]:
    def load(threads: int = 1, routing: str = "branch") -> Engine:
        found = read_checkpoint(checkpoint.folder)
        return load_engine(found, device="cpu", threads=threads, routing=routing, cache=tmp_path / "cache")

    return load


def test_the_second_start_takes_the_engine_of_the_first(start: Callable[..., Engine], compared: list[str]) -> None:
    first = start(threads=2)
    assert set(compared) == {"native", "onnxruntime"}
    compared.clear()
    second = start(threads=2)
    assert compared == []
    assert second.name == first.name
    assert getattr(second, "most_spread", None) == getattr(first, "most_spread", None)
    np.testing.assert_array_equal(second.run(IMAGES, THRESHOLDS).logits, first.run(IMAGES, THRESHOLDS).logits)


@pytest.mark.parametrize("changed", ["weights", "config", "library", "processor", "threads", "engines"])
def test_a_change_makes_the_next_start_measure_again(
    start: Callable[..., Engine],
    compared: list[str],
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    start()
    compared.clear()
    if changed == "weights":
        bias = next(value for name, value in checkpoint.network.named_parameters() if name.endswith("bias"))
        bias.data += 1
        write_checkpoint(checkpoint.folder, checkpoint.network, checkpoint.config)
    elif changed == "config":
        file = checkpoint.folder / CONFIG
        file.write_text(file.read_text().replace('"execute_threshold": 0.5', '"execute_threshold": 0.25'))
    elif changed == "library":
        version = metadata.version
        monkeypatch.setattr(metadata, "version", lambda name: "0" if name == "torch" else version(name))
    elif changed == "processor":
        monkeypatch.setattr(choice_cache, "processor_name", lambda: "another")
    elif changed == "engines":
        monkeypatch.setattr(choice_cache, "engine_sources", lambda: "another")
    start(threads=2 if changed == "threads" else 1)
    assert set(compared) == {"native", "onnxruntime"}


def test_a_choice_that_fell_back_or_cannot_be_used_is_measured_again(
    start: Callable[..., Engine], compared: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object) -> None:
        raise EngineError("no C++ compiler here")

    with monkeypatch.context() as broken:
        broken.setattr(factory, "NativeEngine", unavailable)
        assert start().name == "onnxruntime"
    assert not (tmp_path / "cache").exists()
    start()
    [file] = (tmp_path / "cache").iterdir()
    for content in ("", '{"modes": {"branch": {"engine": "unknown"}}}', '{"modes": {"mask": {"engine": "native"}}}'):
        file.write_text(content)
        compared.clear()
        assert start().name in ("native", "onnxruntime")
        assert compared


def test_a_cache_that_cannot_be_written_changes_nothing(start: Callable[..., Engine], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert start().name in ("native", "onnxruntime")


@pytest.mark.parametrize(
    ("branch", "mask", "kept"),
    [((1.0, 2.0, 3.0), 9.0, {"branch"}), ((1.0, 2.0, 3.0), 0.5, {"mask"}), ((1.0, 2.0, 3.0), 2.5, {"branch", "mask"})],
)
def test_only_engines_that_the_routing_can_take_are_kept(
    start: Callable[..., Engine],
    compared: list[str],
    monkeypatch: pytest.MonkeyPatch,
    branch: tuple[float, float, float],
    mask: float,
    kept: set[str],
) -> None:
    monkeypatch.setattr(routing_switch, "calibrate", lambda *_: {1: Costs(branch, mask, "branch")})
    engine = start(routing="auto")
    assert isinstance(engine, RoutingSwitch) == (len(kept) == 2)
    assert engine.run(IMAGES, THRESHOLDS).mode in kept
    compared.clear()
    monkeypatch.setattr(routing_switch, "calibrate", lambda *_: pytest.fail("measured again"))
    again = start(routing="auto")
    assert again.name == engine.name
    assert compared == []
    if isinstance(again, RoutingSwitch):
        assert again.costs == {1: Costs(branch, mask, "branch")}
