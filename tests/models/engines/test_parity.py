"""Every engine gives the output of the reference engine."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.engines import load_engine
from models.engines.protocol import Engine, Routed

ARCHITECTURES = [
    "cifar10_rnn_gate_38",
    "cifar10_feedforward_38",
    "cifar10_feedforward_110",
    "imagenet_rnn_gate_18",
    "imagenet_rnn_gate_50",
    "cifar10_resnet_38",
]
ENGINES = [
    ("torch", "branch"),
    ("torch", "mask"),
    ("onnxruntime", "branch"),
    ("onnxruntime", "mask"),
    ("native", "branch"),
]
NEAR = 1e-3
"""The distance of a probability to its threshold at which rounding may change a decision.

Such images are not compared.
"""


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request: pytest.FixtureRequest, varied_checkpoint: Callable[[str], Checkpoint]) -> Checkpoint:
    return varied_checkpoint(request.param)


class RunOnce:
    """The reference engine, with which every engine is compared. It runs each input once."""

    name, device = "reference", "cpu"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outputs: dict[tuple[bytes, bytes], Routed] = {}

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        key = images.tobytes(), thresholds.tobytes()
        if key not in self.outputs:
            self.outputs[key] = self.engine.run(images, thresholds)
        return self.outputs[key]

    def close(self) -> None:
        self.engine.close()


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Engine:
    return RunOnce(load_engine(checkpoint, "reference", "cpu"))


@pytest.fixture(scope="module")
def thresholds() -> NDArray[np.float32]:
    """Return a different threshold for each image of a batch."""
    return np.random.default_rng(11).permutation(np.linspace(0.35, 0.65, 8)).astype(np.float32)


@pytest.fixture(scope="module", params=ENGINES, ids=" ".join)
def engine(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Iterator[Engine]:
    name, routing = request.param
    threads = torch.get_num_threads()
    running = load_engine(checkpoint, name, "cpu", threads=1 if name == "torch" else 2, routing=routing)
    yield running
    running.close()
    torch.set_num_threads(threads)


def agree(output: Routed, expected: Routed, thresholds: NDArray[np.float32]) -> int:
    """Compare the images whose decisions rounding cannot change, and return their number."""
    clear = (np.abs(expected.probability - thresholds[:, None]) > NEAR).all(1)
    np.testing.assert_array_equal(output.executed[clear], expected.executed[clear])
    np.testing.assert_allclose(output.logits[clear], expected.logits[clear], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output.probability[clear], expected.probability[clear], atol=1e-4)
    assert output.logits.dtype == output.probability.dtype == np.float32 and output.executed.dtype == np.bool_
    return int(clear.sum())


def test_decisions_vary(reference: Engine, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> None:
    """Otherwise the other tests would be weak."""
    routed = reference.run(images, thresholds)
    if not routed.executed.all():
        assert 0.1 < routed.executed.mean() < 0.9
        assert len(np.unique(routed.executed, axis=0)) > 2


def test_batch(engine: Engine, reference: Engine, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> None:
    expected = reference.run(images, thresholds)
    assert agree(engine.run(images, thresholds), expected, thresholds) >= 5


def test_single_images(
    engine: Engine, reference: Engine, images: NDArray[np.float32], thresholds: NDArray[np.float32]
) -> None:
    expected = reference.run(images, thresholds)
    compared = 0
    for index in range(len(images)):
        one = slice(index, index + 1)
        compared += agree(engine.run(images[one], thresholds[one]), part_of(expected, one), thresholds[one])
    assert compared >= 5


def test_other_images_of_the_batch_do_not_matter(
    engine: Engine, images: NDArray[np.float32], thresholds: NDArray[np.float32]
) -> None:
    together = engine.run(images, thresholds)
    order = np.random.default_rng(3).permutation(len(images))
    shuffled = engine.run(images[order], thresholds[order])
    agree(shuffled, part_of(together, order), thresholds[order])
    few = engine.run(images[2:5], thresholds[2:5])
    agree(few, part_of(together, slice(2, 5)), thresholds[2:5])


def part_of(output: Routed, part: slice | NDArray[np.intp]) -> Routed:
    return Routed(output.logits[part], output.executed[part], output.probability[part], output.mode)


def test_extreme_thresholds(engine: Engine, reference: Engine, images: NDArray[np.float32]) -> None:
    gated = not reference.run(images[:1], np.ones(1, np.float32)).executed.all()
    for threshold in (-0.5, 0, 1, 1.5):
        thresholds = np.full(len(images), threshold, np.float32)
        expected = reference.run(images, thresholds)
        output = engine.run(images, thresholds)
        assert (output.executed == (threshold <= 0 or not gated)).all()
        np.testing.assert_allclose(output.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_a_batch_without_images_or_with_too_few_thresholds_is_refused(
    engine: Engine, reference: Engine, images: NDArray[np.float32]
) -> None:
    for refusing in (engine, reference):
        with pytest.raises(ValueError, match="no image"):
            refusing.run(images[:0], np.ones(0, np.float32))
        with pytest.raises(ValueError, match="one for each image"):
            refusing.run(images[:2], np.ones(1, np.float32))


def test_saturated_gates_obey_extreme_thresholds(
    varied_checkpoint: Callable[[str], Checkpoint], make_images: Callable[[str], NDArray[np.float32]]
) -> None:
    """A probability that rounds to 0 exceeds threshold 0. One that rounds to 1 does not exceed threshold 1."""
    checkpoint = varied_checkpoint("cifar10_feedforward_38")
    with torch.no_grad():
        for index, gate in enumerate(checkpoint.network.gates):
            gate.head.bias.copy_(torch.tensor([0.0, 300.0 if index % 2 else -300.0]))  # type: ignore[union-attr, operator]
    images = make_images("cifar10_feedforward_38")[:2]
    for name in ("reference", "torch", "onnxruntime", "native"):
        engine = load_engine(checkpoint, name, "cpu", threads=1, routing="mask" if name == "reference" else "branch")
        output = engine.run(images, np.array([0, 1], np.float32))
        assert (output.probability[:, 0] == 0).all()
        assert (output.probability[:, 1] == 1).all()
        assert output.executed[0].all()
        assert not output.executed[1].any()
        engine.close()


def test_mode_is_the_requested_one(engine: Engine, images: NDArray[np.float32], request: pytest.FixtureRequest) -> None:
    routing = request.node.callspec.params["engine"][1]
    assert engine.run(images[:1], np.full(1, 0.5, np.float32)).mode == routing
