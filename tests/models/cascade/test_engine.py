from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.cascade.confidence import confidence, probabilities
from models.cascade.config import Cascade, read_cascade
from models.cascade.engine import CascadeEngine, executed_macs, load_cascade_engine
from models.engines import load_engine

Write = Callable[..., Path]


@pytest.fixture(params=["reference", "torch", "onnxruntime"])
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cascade(write: Write, images: NDArray[np.float32]) -> Cascade:
    """A cascade whose margin lies between two of the images' confidences, so that half of them are escalated."""
    found = read_cascade(write())
    engine = load_engine(found.stages[0], "reference", "cpu", 1)
    routed = engine.run(images, np.full(len(images), 0.5, np.float32))
    sure = np.sort(confidence(probabilities(routed.logits, 1.3)))
    return read_cascade(write(margin=float((sure[19] + sure[20]) / 2)))


@pytest.fixture
def engine(cascade: Cascade, engine_name: str) -> Iterator[CascadeEngine]:
    engine = load_cascade_engine(cascade, engine_name, "cpu", 1)
    yield engine
    engine.close()


def rows(cascade: Cascade, count: int) -> NDArray[np.float32]:
    return np.tile(np.asarray(cascade.thresholds, np.float32), (count, 1))


def test_outputs_equal_those_of_the_stages_run_separately(
    cascade: Cascade, engine: CascadeEngine, engine_name: str, images: NDArray[np.float32]
) -> None:
    routed = engine.run(images, rows(cascade, len(images)))
    half = np.full(len(images), 0.5, np.float32)
    first, last = (load_engine(stage, engine_name, "cpu", 1).run(images, half) for stage in cascade.stages)
    shares = [probabilities(first.logits, 1.3), probabilities(last.logits, 0.8)]
    escalates = confidence(shares[0]) < np.float32(cascade.thresholds[2])
    expected = np.where(escalates[:, None], (shares[0] + shares[1]) / 2, shares[0])
    assert 0 < escalates.sum() < len(images)
    assert routed.stages[1].images.tolist() == np.flatnonzero(escalates).tolist()
    np.testing.assert_allclose(probabilities(routed.logits, 1), expected, atol=2e-6)
    gates = len(cascade.stages[0].macs.blocks) - 1
    assert (routed.executed[:, :gates] == first.executed).all()
    assert (routed.executed[:, gates:] == escalates[:, None]).all(), (
        "the dense stage runs all blocks of what reaches it"
    )
    costs = executed_macs(cascade, routed)
    assert (costs[0] == cascade.stages[0].macs.executed(first.executed, routed.stages[0].routed.mode)).all()
    assert (costs[1] == np.where(escalates, cascade.stages[1].macs.dense, 0)).all()


def test_an_output_does_not_depend_on_its_batch(
    cascade: Cascade, engine: CascadeEngine, images: NDArray[np.float32]
) -> None:
    together = engine.run(images, rows(cascade, len(images)))
    for index in (0, 7, 21, 39):
        alone = engine.run(images[index : index + 1], rows(cascade, 1))
        assert (alone.executed[0] == together.executed[index]).all()
        np.testing.assert_allclose(alone.logits[0], together.logits[index], rtol=1e-4, atol=1e-5)


def test_each_image_has_its_own_thresholds_and_margin(
    cascade: Cascade, engine: CascadeEngine, images: NDArray[np.float32]
) -> None:
    thresholds = np.array([[0, 0.5, 0], [1, 0.5, 1], [1, 0.5, 0]], np.float32)
    routed = engine.run(images[:3], thresholds)
    gates = len(cascade.stages[0].macs.blocks) - 1
    assert routed.executed[0, :gates].all() and not routed.executed[0, gates:].any()
    assert not routed.executed[1, :gates].any() and routed.executed[1, gates:].all()
    assert not routed.executed[2].any()


def test_threshold_0_runs_every_block_and_1_the_fewest(engine: CascadeEngine, images: NDArray[np.float32]) -> None:
    routed = engine.run(images[:4], np.array([0, 1, 0, 1], np.float32))
    assert routed.executed[[0, 2]].all() and not routed.executed[[1, 3]].any()


def test_the_combination_last_uses_only_the_last_stage(
    write: Write, engine_name: str, images: NDArray[np.float32]
) -> None:
    cascade = read_cascade(write(margin=1.0, combination="last"))
    engine = load_cascade_engine(cascade, engine_name, "cpu", 1)
    routed = engine.run(images[:5], np.zeros(5, np.float32))
    last = load_engine(cascade.stages[1], engine_name, "cpu", 1).run(images[:5], np.zeros(5, np.float32))
    np.testing.assert_allclose(probabilities(routed.logits, 1), probabilities(last.logits, 0.8), atol=2e-6)
    dense = engine.run_dense(images[:5])
    np.testing.assert_allclose(dense.logits, last.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 4), (3, 3)])
def test_thresholds_of_another_shape_are_refused(
    engine: CascadeEngine, images: NDArray[np.float32], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="shape"):
        engine.run(images[:4], np.zeros(shape, np.float32))


def test_no_image_is_refused(engine: CascadeEngine, images: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="no image"):
        engine.run(images[:0], np.zeros(0, np.float32))
