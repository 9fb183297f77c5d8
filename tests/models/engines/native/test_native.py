"""The native engine gives the reference output and computes exactly the executed blocks."""

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.engines.folding import fold
from models.engines.native import build as native_build
from models.engines.native.engine import NativeEngine, load_library
from models.engines.protocol import EngineError, Routed
from models.engines.torch.reference import ReferenceEngine
from models.network import SkipNet

Build = Callable[[str], SkipNet]
Images = Callable[[str], NDArray[np.float32]]

ARCHITECTURES = [
    "cifar10_resnet_38",
    "cifar10_resnet_110",
    "cifar10_rnn_gate_38",
    "cifar10_rnn_gate_110",
    "cifar100_feedforward_38",
    "cifar10_feedforward_110",
    "imagenet_rnn_gate_18",
    "imagenet_rnn_gate_50",
]
NEAR = 1e-5
"""The distance of a probability to its threshold at which rounding may change a decision."""

pytestmark = pytest.mark.skipif(shutil.which(os.environ.get("CXX") or "c++") is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def routed_network(varied_network: Build) -> SkipNet:
    return varied_network("cifar10_rnn_gate_38")


@pytest.fixture(scope="module")
def engine(routed_network: SkipNet) -> Iterator[NativeEngine]:
    engine = NativeEngine(fold(routed_network), threads=1)
    yield engine
    engine.close()


def mixed_thresholds(count: int) -> NDArray[np.float32]:
    return np.resize(np.array([0.5, 0.0, 1.0, 0.3, 0.7], np.float32), count)


def splitting_thresholds(reference: ReferenceEngine, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return thresholds [N]: 0, 1, and values at which the images execute some blocks and skip others."""
    thresholds = np.full(len(images), 0.5, np.float32)
    probability = reference.run(images, thresholds).probability
    thresholds = np.quantile(probability, 0.4, axis=1, method="midpoint").astype(np.float32)
    thresholds[:2] = 0, 1
    return thresholds


def assert_same_output(output: Routed, expected: Routed, thresholds: NDArray[np.float32]) -> int:
    """Compare the images whose decisions rounding cannot change, and return their number."""
    forced = (thresholds == 0) | (thresholds == 1)
    sure = forced | (np.abs(expected.probability - thresholds[:, None]) > NEAR).all(1)
    np.testing.assert_array_equal(output.executed[sure], expected.executed[sure])
    np.testing.assert_allclose(output.probability[sure], expected.probability[sure], rtol=0, atol=1e-5)
    np.testing.assert_allclose(output.logits[sure], expected.logits[sure], rtol=1e-5, atol=1e-4)
    return int(sure.sum())


def assert_identical(output: Routed, expected: Routed) -> None:
    for part in ("logits", "probability", "executed"):
        np.testing.assert_array_equal(getattr(output, part), getattr(expected, part))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_output_equals_the_reference(architecture: str, varied_network: Build, make_images: Images) -> None:
    network, images = varied_network(architecture), make_images(architecture)
    reference = ReferenceEngine(network)
    thresholds = splitting_thresholds(reference, images)
    expected = reference.run(images, thresholds)

    output = NativeEngine(fold(network), threads=1).run(images, thresholds)

    assert assert_same_output(output, expected, thresholds) >= len(images) - 1
    assert output.mode == "branch"
    if network.gate_kind is None:
        assert output.executed.all()
    else:
        # Otherwise every image has the same route, and the test is weak.
        assert 0.1 < expected.executed[2:].mean() < 0.9
        assert output.executed[0].all()
        assert not output.executed[1].any()


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38", "cifar10_feedforward_38", "cifar10_feedforward_110"])
@pytest.mark.parametrize("size", [(8, 8), (29, 35), (40, 24)])
def test_any_image_size(architecture: str, size: tuple[int, int], varied_network: Build) -> None:
    network = varied_network(architecture)
    images = np.random.default_rng(0).normal(size=(5, 3, *size)).astype(np.float32)
    thresholds = mixed_thresholds(5)
    expected = ReferenceEngine(network).run(images, thresholds)
    output = NativeEngine(fold(network), threads=2).run(images, thresholds)
    assert assert_same_output(output, expected, thresholds) >= 4


def test_image_size_may_change_between_calls(engine: NativeEngine, make_images: Images) -> None:
    images = make_images("cifar10_rnn_gate_38")
    thresholds = mixed_thresholds(len(images))
    before = engine.run(images, thresholds)
    engine.run(images[:, :, :20, :13], thresholds)
    assert_identical(engine.run(images, thresholds), before)


@pytest.mark.parametrize("level", native_build.cpu_levels())
def test_every_cpu_level_gives_the_same_output(
    level: str,
    routed_network: SkipNet,
    make_images: Images,
    engine: NativeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = make_images("cifar10_rnn_gate_38")
    thresholds = mixed_thresholds(len(images))
    monkeypatch.setattr(native_build, "cpu_levels", lambda: [level])
    load_library.cache_clear()
    output = NativeEngine(fold(routed_network), threads=1).run(images, thresholds)
    load_library.cache_clear()
    assert assert_same_output(output, engine.run(images, thresholds), thresholds) >= len(images) - 1


def test_an_output_depends_on_neither_batch_nor_threads(
    routed_network: SkipNet, engine: NativeEngine, make_images: Images
) -> None:
    images = np.concatenate([make_images("cifar10_rnn_gate_38")] * 4)
    thresholds = mixed_thresholds(len(images))
    together = engine.run(images, thresholds)
    for index in range(8):
        one = engine.run(images[index : index + 1], thresholds[index : index + 1])
        assert_identical(
            one, Routed(together.logits[[index]], together.executed[[index]], together.probability[[index]], "branch")
        )
    for threads in (2, 5, 64):
        other = NativeEngine(fold(routed_network), threads)
        assert_identical(other.run(images, thresholds), together)
        assert_identical(other.run(images[:3], thresholds[:3]), engine.run(images[:3], thresholds[:3]))


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38", "cifar10_feedforward_38", "imagenet_rnn_gate_50"])
def test_a_skipped_block_is_not_computed(architecture: str, varied_network: Build, make_images: Images) -> None:
    network, images = varied_network(architecture), make_images(architecture)
    engine = NativeEngine(fold(network), threads=2)
    output = engine.run(images, mixed_thresholds(len(images)))
    executed = np.concatenate([np.ones((len(images), 1), np.bool_), output.executed], 1)
    projections = np.array([block.projects for block in network.blocks])
    np.testing.assert_array_equal(engine.convolutions, executed * network.layers_per_block + projections)
    assert not executed.all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_extreme_pixels_affect_no_other_image(engine: NativeEngine, make_images: Images, value: float) -> None:
    images = make_images("cifar10_rnn_gate_38")
    thresholds = np.full(len(images), 0.5, np.float32)
    expected = engine.run(images, thresholds)
    images[0, 1, 3:9, 4] = value
    output = engine.run(images, thresholds)
    assert not np.isfinite(output.logits[0]).all() or value == 1e30
    np.testing.assert_array_equal(output.logits[1:], expected.logits[1:])
    assert_identical(engine.run(make_images("cifar10_rnn_gate_38"), thresholds), expected)


def test_strided_arrays_and_other_dtypes(engine: NativeEngine, make_images: Images) -> None:
    images = make_images("cifar10_rnn_gate_38")
    thresholds = mixed_thresholds(len(images))
    expected = engine.run(images, thresholds)
    last_is_channel = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert_identical(engine.run(last_is_channel, thresholds), expected)
    doubles = engine.run(images.astype(np.float64), thresholds)
    assert_identical(doubles, expected)


@pytest.mark.parametrize(
    ("images", "thresholds", "message"),
    [
        ((2, 1, 32, 32), (2,), "not \\(N, 3, height, width\\)"),
        ((2, 3, 32), (2,), "not \\(N, 3, height, width\\)"),
        ((2, 3, 0, 32), (2,), "not \\(N, 3, height, width\\)"),
        ((2, 3, 32, 32), (1,), "one for each image"),
    ],
)
def test_wrong_shapes_are_refused(
    engine: NativeEngine, images: tuple[int, ...], thresholds: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.run(np.zeros(images, np.float32), np.zeros(thresholds, np.float32))


def test_images_too_small_to_pool_are_refused(varied_network: Build) -> None:
    engine = NativeEngine(fold(varied_network("cifar10_feedforward_38")), threads=1)
    with pytest.raises(ValueError, match="4 x 4 pixels are too small"):
        engine.run(np.zeros((1, 3, 4, 4), np.float32), np.zeros(1, np.float32))
    assert np.isfinite(engine.run(np.zeros((1, 3, 8, 8), np.float32), np.zeros(1, np.float32)).logits).all()


def test_a_closed_engine_refuses(routed_network: SkipNet) -> None:
    engine = NativeEngine(fold(routed_network), threads=1)
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.run(np.zeros((1, 3, 32, 32), np.float32), np.zeros(1, np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_the_lstm_saturates_like_the_reference(routed_network: SkipNet, seed: int) -> None:
    """With pre-activations far beyond the overflow of exp, and in between."""
    images = np.random.default_rng(seed).normal(size=(16, 3, 32, 32)).astype(np.float32)
    images *= np.geomspace(1e-3, 1e4, 16, dtype=np.float32)[:, None, None, None]
    thresholds = np.full(16, 0.5, np.float32)
    output = NativeEngine(fold(routed_network), threads=2).run(images, thresholds)
    expected = ReferenceEngine(routed_network).run(images, thresholds)
    sure = (np.abs(expected.probability - 0.5) > 1e-3).all(1)
    assert sure.sum() >= 12
    np.testing.assert_array_equal(output.executed[sure], expected.executed[sure])
    np.testing.assert_allclose(output.logits[sure], expected.logits[sure], rtol=1e-4, atol=1e-4)


class TestBuild:
    @pytest.fixture(autouse=True)
    def empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        source = tmp_path / "native.cpp"
        source.write_bytes(native_build.SOURCE.read_bytes())
        monkeypatch.setattr(native_build, "SOURCE", source)
        load_library.cache_clear()
        yield
        load_library.cache_clear()

    def test_no_compiler(self, routed_network: SkipNet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(EngineError, match="no C\\+\\+ compiler 'no-such-compiler': install g\\+\\+"):
            NativeEngine(fold(routed_network), threads=1)

    def test_a_compiler_error_is_reported(self, routed_network: SkipNet) -> None:
        native_build.SOURCE.write_text("#error no such platform\n")
        with pytest.raises(EngineError, match=r"failed to compile.*no such platform"):
            NativeEngine(fold(routed_network), threads=1)
        assert not list(native_build.cache_folder().iterdir())

    def test_no_place_to_compile_into(
        self, routed_network: SkipNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(EngineError, match="cannot be compiled into"):
            NativeEngine(fold(routed_network), threads=1)

    def test_no_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
        with pytest.raises(EngineError, match="set XDG_CACHE_HOME"):
            load_library()

    def test_library_that_does_not_load(self, routed_network: SkipNet) -> None:
        level = native_build.cpu_levels()[0]
        native_build.SOURCE.with_name(native_build.library_name(level)).write_text("not a library")
        with pytest.raises(EngineError, match="cannot be loaded"):
            NativeEngine(fold(routed_network), threads=1)

    def test_shipped_library_needs_no_compiler(self, routed_network: SkipNet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native_build, "X86_FEATURES", {"x86-64": set()})  # One level is enough to compile.
        native_build.main()
        monkeypatch.setenv("CXX", "no-such-compiler")
        engine = NativeEngine(fold(routed_network), threads=1)
        output = engine.run(np.zeros((1, 3, 32, 32), np.float32), np.zeros(1, np.float32))
        assert output.executed.all()

    def test_library_name_depends_on_sources_and_level(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        levels = native_build.X86_FEATURES
        texts = [file.read_text() for file in (native_build.SOURCE, *native_build.HEADERS)]
        included = set(re.findall(r'#include "(.+)"', "".join(texts)))
        names = {native_build.library_name(level) for level in levels}
        native_build.SOURCE.write_text("// changed\n")
        names |= {native_build.library_name(level) for level in levels}
        for index, header in enumerate(native_build.HEADERS):
            changed = tmp_path / header.name
            changed.write_text("// changed\n")
            headers = [*native_build.HEADERS[:index], changed, *native_build.HEADERS[index + 1 :]]
            monkeypatch.setattr(native_build, "HEADERS", headers)
            names |= {native_build.library_name(level) for level in levels}
        assert {header.name for header in native_build.HEADERS} == included
        assert len(names) == (2 + len(included)) * len(levels)


@pytest.mark.parametrize(
    ("features", "level"),
    [
        ("sse2", "x86-64"),
        ("avx2 fma bmi1 bmi2 f16c movbe", "x86-64-v3"),
        ("avx2 fma bmi1 bmi2 f16c movbe avx512f avx512bw avx512cd avx512dq avx512vl", "x86-64-v4"),
        ("avx512f avx2 fma bmi1 bmi2 f16c movbe", "x86-64-v3"),
    ],
)
def test_level_of_cpu(features: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(native_build, "cpu_features", lambda: set(features.split()))
    assert native_build.cpu_levels()[0] == level


def test_other_architectures_have_one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert native_build.cpu_levels() == ["aarch64"]
    assert not any(flag.startswith("-march") for flag in native_build.flags("aarch64"))
