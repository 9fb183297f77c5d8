"""The persistent kernel, on simulated thread blocks, gives the reference output."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deploy.tools.persistent_rounding import RoundedEngine
from models import SHIPPED
from models.blocks import BasicBlock
from models.checkpoint import read_checkpoint
from models.data.augmentation import normalise
from models.data.datasets import find_dataset
from models.engines.folding import fold
from models.engines.native.engine import NativeEngine
from models.engines.protocol import Routed
from models.engines.torch.reference import ReferenceEngine
from models.evaluation.forced_routes import force_route
from models.importing.parity import THRESHOLD, read_case
from models.model_repository import find_version
from models.network import GateKind, SkipNet
from models.preprocessing import prepare
from tests.models.data.parquet_files import read_images
from tests.models.engines.persistent.simulated import SimulatedEngine
from tests.research import shared

ARCHITECTURES = [
    "cifar10_resnet_38",
    "cifar10_rnn_gate_38",
    "cifar100_feedforward_38",
    "cifar10_feedforward_110",
]
CASES = ["cifar10_resnet_38", "cifar10_rnn_gate_38", "cifar10_rnn_gate_rl_38", "cifar10_feedforward_38"]
PHOTOS = sorted((Path(__file__).parents[3] / "photos").glob("*.jpg"))
NEAR = 1e-3
"""The distance of a probability to its threshold at which half precision may change a decision."""
HALF = 0.01
"""The error of a logit in half precision, relative to the largest: 2**-11 in each of 38 to 110 layers."""

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here: install g++")

Build = Callable[[str], SkipNet]
Images = Callable[[str], NDArray[np.float32]]


def agree(output: Routed, expected: Routed, thresholds: NDArray[np.float32]) -> int:
    """Compare the images whose decisions rounding cannot change, and return the number of the others."""
    forced = (thresholds <= 0) | (thresholds >= 1)
    clear = forced | (np.abs(expected.probability - thresholds[:, None]) > NEAR).all(1)
    np.testing.assert_array_equal(output.executed[clear], expected.executed[clear])
    np.testing.assert_allclose(output.probability[clear], expected.probability[clear], rtol=0, atol=HALF)
    largest = float(np.abs(expected.logits).max())
    np.testing.assert_allclose(output.logits[clear], expected.logits[clear], rtol=0, atol=HALF * largest)
    return int((~clear).sum())


def assert_no_fault(engine: SimulatedEngine) -> None:
    """No run may have races, accesses out of bounds or diverged warps."""
    assert (engine.counts.races, engine.counts.outside, engine.counts.diverged) == (0, 0, 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_gate_and_stage(architecture: str, varied_network: Build, make_images: Images) -> None:
    """The thresholds of one batch differ: every block, none, and the gates' own routes."""
    network, images = varied_network(architecture), make_images(architecture)[:5]
    reference = ReferenceEngine(network)
    thresholds = np.array([0, 1, 0.5, 0.4, 0.6], np.float32)
    expected = reference.run(images, thresholds)
    engine = SimulatedEngine(fold(network), grid=2)

    output = engine.run(images, thresholds)

    assert_no_fault(engine)
    assert agree(output, expected, thresholds) <= 1
    if network.gate_kind is not None:
        assert output.executed[0].all()
        assert not output.executed[1].any()
        assert 0.1 < expected.executed[2:].mean() < 0.9


@pytest.mark.parametrize("blocks", [(2, 2, 1), (1, 1, 1)])
def test_groups_may_have_one_block(blocks: tuple[int, ...]) -> None:
    """Then the last gate is narrower than the weights that the kernel copies for a gate after it."""
    torch.manual_seed(3)
    network = SkipNet(stem="cifar", block=BasicBlock, blocks=blocks, classes=5, gates="rnn").eval()
    images, thresholds = (
        np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32),
        np.array([0, 1], np.float32),
    )
    engine = SimulatedEngine(fold(network))
    agree(engine.run(images, thresholds), ReferenceEngine(network).run(images, thresholds), thresholds)
    assert_no_fault(engine)


def test_depth_and_classes_are_known_only_at_run_time(varied_network: Build, make_images: Images) -> None:
    """One compiled kernel runs 38 layers with 10 classes and 152 layers with 100."""
    network, images = varied_network("cifar100_rnn_gate_152"), make_images("cifar100_rnn_gate_152")[3:4]
    thresholds = np.array([0.5], np.float32)
    engine = SimulatedEngine(fold(network))
    output, expected = engine.run(images, thresholds), ReferenceEngine(network).run(images, thresholds)
    assert_no_fault(engine)
    assert output.logits.shape == (1, 100)
    assert output.executed.shape == (1, 74)
    assert (output.executed == expected.executed).mean() > 0.9


@pytest.fixture(scope="module")
def shipped() -> SkipNet:
    return read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None)).network


def test_photos_on_the_shipped_checkpoint(shipped: SkipNet) -> None:
    spec = read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None)).config.input
    images = np.stack([prepare(Image.open(photo).convert("RGB"), spec) for photo in PHOTOS])
    thresholds = np.full(len(images), 0.5, np.float32)
    engine = SimulatedEngine(fold(shipped))
    undecided = agree(engine.run(images, thresholds), ReferenceEngine(shipped).run(images, thresholds), thresholds)
    assert_no_fault(engine)
    assert undecided < len(images)


@pytest.fixture(scope="module")
def real() -> NDArray[np.float32]:
    """The first 48 test images of CIFAR-10."""
    dataset = find_dataset("cifar10")
    pixels, _ = read_images("cifar10", "test")
    images: NDArray[np.float32] = normalise(
        torch.from_numpy(pixels[:48]).permute(0, 3, 1, 2), dataset.mean, dataset.std
    ).numpy()
    return images


def test_real_images_on_the_shipped_checkpoint(shipped: SkipNet, real: NDArray[np.float32]) -> None:
    """The kernel makes the same decisions in half precision, on a sample."""
    thresholds = np.full(len(real), 0.5, np.float32)
    engine = SimulatedEngine(fold(shipped), grid=3)
    output, expected = engine.run(real, thresholds), ReferenceEngine(shipped).run(real, thresholds)
    assert_no_fault(engine)
    assert agree(output, expected, thresholds) <= 4
    assert (output.executed == expected.executed).mean() >= 0.995
    assert (output.logits.argmax(1) == expected.logits.argmax(1)).mean() >= 0.97


@pytest.mark.parametrize("name", CASES)
def test_output_equals_the_public_codes(name: str) -> None:
    """No probability is within 0.02 of its threshold, so every decision must be the same."""
    case = read_case(shared(f"reference/parity/{name}.npz"))
    engine = SimulatedEngine(fold(case.checkpoint.network))
    few = slice(0, 6)
    output = engine.run(case.images[few], np.full(6, THRESHOLD, np.float32))
    assert_no_fault(engine)
    np.testing.assert_array_equal(output.executed, case.expected.executed[few])
    largest = np.abs(case.expected.logits).max()
    np.testing.assert_allclose(output.logits, case.expected.logits[few], rtol=0, atol=HALF * largest)


@pytest.mark.parametrize("gates", [None, "rnn", "feedforward_1", "feedforward_2"])
def test_the_emulation_rounds_where_the_kernel_does(gates: GateKind | None) -> None:
    """They differ by the order of sums, which is less than half of the error of half precision."""
    torch.manual_seed(3)
    network = SkipNet(stem="cifar", block=BasicBlock, blocks=(2, 2, 2), classes=5, gates=gates).eval()
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    thresholds = np.array([0.5, 0, 1], np.float32)
    kernel = SimulatedEngine(fold(network)).run(images, thresholds)
    emulated = RoundedEngine(fold(network)).run(images, thresholds)
    reference = ReferenceEngine(network).run(images, thresholds)
    np.testing.assert_array_equal(emulated.executed, kernel.executed)
    np.testing.assert_allclose(emulated.probability, kernel.probability, rtol=0, atol=1e-4)
    difference, rounding = (np.abs(kernel.logits - other.logits).mean() for other in (emulated, reference))
    assert difference < rounding / 2


@pytest.mark.parametrize("architecture", ["cifar10_rnn_gate_38", "cifar10_feedforward_38", "cifar10_feedforward_110"])
def test_two_schedules_give_the_same_bits(architecture: str, varied_network: Build, make_images: Images) -> None:
    """The output does not depend on the order of warps and thread blocks, or on the batch."""
    folded, images = fold(varied_network(architecture)), make_images(architecture)[2:5]
    thresholds = np.array([0.5, 0.3, 0.7], np.float32)
    first = SimulatedEngine(folded, grid=1, order=1).run(images, thresholds)
    engine = SimulatedEngine(folded, grid=3, order=2)
    second = engine.run(images, thresholds)
    alone = engine.run(images[1:2], thresholds[1:2])
    for name in ("logits", "probability", "executed"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
        np.testing.assert_array_equal(getattr(alone, name), getattr(first, name)[1:2])


def test_the_queue_is_ready_for_the_next_launch(shipped: SkipNet, make_images: Images) -> None:
    engine = SimulatedEngine(fold(shipped), grid=2)
    images, thresholds = make_images("cifar10_rnn_gate_38")[:3], np.ones(3, np.float32)
    first = engine.run(images, thresholds)
    assert not engine.queue.any()
    np.testing.assert_array_equal(engine.run(images, thresholds).logits, first.logits)


def test_saturated_gates_obey_extreme_thresholds(shipped: SkipNet, make_images: Images) -> None:
    """A probability that rounds to 0 exceeds threshold 0. One that rounds to 1 does not exceed threshold 1."""
    route = np.arange(17) % 2 > 0
    network = force_route(shipped, route)
    with torch.no_grad():
        assert network.controller is not None
        network.controller.projection.weight.mul_(20)
    output = SimulatedEngine(fold(network)).run(make_images("cifar10")[:2], np.array([0, 1], np.float32))
    np.testing.assert_array_equal(output.probability, np.broadcast_to(route.astype(np.float32), (2, 17)))
    assert output.executed[0].all()
    assert not output.executed[1].any()


def test_output_equals_the_native_engines(shipped: SkipNet, make_images: Images) -> None:
    """The native engine runs the same folded network in float32."""
    images, thresholds = make_images("cifar10_rnn_gate_38")[:2], np.array([0.0, 1.0], np.float32)
    output = SimulatedEngine(fold(shipped)).run(images, thresholds)
    agree(output, NativeEngine(fold(shipped), threads=1).run(images, thresholds), thresholds)
