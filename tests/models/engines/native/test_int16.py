"""The native engine in 16-bit integers: near float32, and the same on any number of cores."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.engines.folding import fold
from models.engines.native import build as native_build
from models.engines.native.activation_limits import measure_limits
from models.engines.native.engine import NativeEngine, load_library
from models.engines.native.layout import ActivationLimits
from models.engines.protocol import EngineError
from models.network import SkipNet
from tests.models.engines.native.test_native import assert_identical, mixed_thresholds

Build = Callable[[str], SkipNet]
Images = Callable[[str], NDArray[np.float32]]
ARCHITECTURES = ["cifar10_resnet_38", "cifar10_feedforward_38", "imagenet_rnn_gate_18", "imagenet_rnn_gate_50"]
NEAR, DIFFERENCE = 0.01, 0.004
"""Tolerances: of a probability near its threshold, and of logits relative to the largest."""


def limits_of(network: SkipNet, images: NDArray[np.float32]) -> ActivationLimits:
    return measure_limits(fold(network), [torch.from_numpy(images)], 0.5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_output_is_near_float32(architecture: str, varied_network: Build, make_images: Images) -> None:
    network, images = varied_network(architecture), make_images(architecture)
    thresholds = mixed_thresholds(len(images))
    expected = NativeEngine(fold(network), 1).run(images, thresholds)
    engine = NativeEngine(fold(network), 1, limits_of(network, images))
    output = engine.run(images, thresholds)
    sure = (np.abs(expected.probability - thresholds[:, None]) > NEAR).all(1)
    sure |= (thresholds == 0) | (thresholds == 1)
    assert sure.sum() >= len(images) // 2
    np.testing.assert_array_equal(output.executed[sure], expected.executed[sure])
    difference = np.abs(output.logits[sure] - expected.logits[sure]).max() / np.abs(expected.logits).max()
    # Equal logits would mean that no block runs in integers.
    assert 0 < difference < DIFFERENCE


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38", "cifar10_feedforward_38", "imagenet_rnn_gate_50"])
@pytest.mark.parametrize("integers", [False, True])
def test_an_image_on_several_cores_gives_the_same_bits(
    architecture: str, integers: bool, varied_network: Build, make_images: Images
) -> None:
    network, images = varied_network(architecture), make_images(architecture)
    thresholds = mixed_thresholds(len(images))
    limits = limits_of(network, images) if integers else None
    one = NativeEngine(fold(network), 1, limits).run(images, thresholds)
    for threads in (2, 3):
        engine = NativeEngine(fold(network), threads, limits)
        engine.most_spread = threads - 1
        for first in range(0, len(images), threads - 1):
            part = slice(first, first + threads - 1)
            spread = engine.run(images[part], thresholds[part])
            np.testing.assert_array_equal(spread.logits, one.logits[part])
            np.testing.assert_array_equal(spread.probability, one.probability[part])
            np.testing.assert_array_equal(spread.executed, one.executed[part])
        assert_identical(engine.run(images, thresholds), one)
        engine.close()


@pytest.mark.parametrize("level", native_build.cpu_levels())
def test_every_cpu_level_gives_about_the_same(
    level: str, varied_network: Build, make_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = varied_network("imagenet_rnn_gate_18"), make_images("imagenet_rnn_gate_18")
    thresholds = np.zeros(len(images), np.float32)
    expected = NativeEngine(fold(network), 1).run(images, thresholds)
    monkeypatch.setattr(native_build, "cpu_levels", lambda: [level])
    load_library.cache_clear()
    output = NativeEngine(fold(network), 1, limits_of(network, images)).run(images, thresholds)
    load_library.cache_clear()
    assert np.abs(output.logits - expected.logits).max() < DIFFERENCE * np.abs(expected.logits).max()


def test_larger_activations_than_measured_are_clipped(varied_network: Build, make_images: Images) -> None:
    """They must neither overflow nor affect other images."""
    network, images = varied_network("cifar10_rnn_gate_38"), make_images("cifar10_rnn_gate_38")
    engine = NativeEngine(fold(network), 1, limits_of(network, images))
    thresholds = np.zeros(len(images), np.float32)
    expected = engine.run(images, thresholds)
    images[0] *= 1e6
    output = engine.run(images, thresholds)
    assert np.isfinite(output.logits).all()
    np.testing.assert_array_equal(output.logits[1:], expected.logits[1:])


def test_the_largest_products_do_not_overflow(varied_network: Build) -> None:
    """With equal weights and activations at their limits, every sum is as large as the engine allows."""
    network = varied_network("cifar10_rnn_gate_38")
    with torch.no_grad():
        for block in network.blocks:
            for module in block.modules():
                if isinstance(module, torch.nn.Conv2d):
                    module.weight.fill_(1 / module.weight[0].numel())
    images = np.ones((1, 3, 32, 32), np.float32)
    limits = tuple(tuple(limit / 2 for limit in block) for block in limits_of(network, images))
    threshold = np.zeros(1, np.float32)
    output = NativeEngine(fold(network), 1, limits).run(images, threshold)
    expected = NativeEngine(fold(network), 1).run(images, threshold)
    assert np.isfinite(output.logits).all()
    assert np.sign(output.logits).tolist() == np.sign(expected.logits).tolist()


def test_limits_of_another_network_are_refused(varied_network: Build, make_images: Images) -> None:
    limits = limits_of(varied_network("cifar10_rnn_gate_38"), make_images("cifar10_rnn_gate_38"))
    with pytest.raises(EngineError, match="those of another network"):
        NativeEngine(fold(varied_network("cifar10_resnet_110")), 1, limits)


def test_spreading_is_measured(varied_network: Build) -> None:
    network = fold(varied_network("cifar10_rnn_gate_38"))
    one, three = NativeEngine(network, 1), NativeEngine(network, 3)
    for engine in (one, three):
        engine.measure_spreading(32, 32)
    assert one.most_spread == 0
    assert 0 <= three.most_spread <= 2
