"""The exported file, in an ONNX Runtime session with default settings."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from models.benchmark.other_engines import openvino_core
from models.checkpoint import Checkpoint
from models.engines.onnx.export import export
from models.engines.onnx.graph import block_weight
from models.engines.torch.reference import ReferenceEngine
from models.macs import Mode

ARCHITECTURES = [
    "cifar10_rnn_gate_38",
    "cifar10_feedforward_38",
    "cifar10_feedforward_110",
    "imagenet_rnn_gate_18",
    "cifar10_resnet_38",
]


OWN_THRESHOLD = 0.45


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request: pytest.FixtureRequest, varied_checkpoint: Callable[[str], Checkpoint]) -> Checkpoint:
    made = varied_checkpoint(request.param)
    return replace(made, config=made.config.model_copy(update={"execute_threshold": OWN_THRESHOLD}))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mode], Path]:
    """Return a function that exports the checkpoint in one mode, once."""

    @cache
    def write(mode: Mode) -> Path:
        path = tmp_path_factory.mktemp(mode) / "network.onnx"
        export(checkpoint, path, mode)
        return path

    return write


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("mode", ["branch", "mask"])
def test_output_equals_the_reference(
    checkpoint: Checkpoint, images: NDArray[np.float32], mode: Mode, exported: Callable[[Mode], Path]
) -> None:
    session = open_session(exported(mode))
    thresholds = np.linspace(0, 1, len(images), dtype=np.float32)
    expected = ReferenceEngine(checkpoint.network).run(images, thresholds)
    step = 1 if mode == "branch" else len(images)
    compared = 0
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        inputs = {"images": images[part], "thresholds": thresholds[part]}
        if checkpoint.network.gate_kind is None:
            del inputs["thresholds"]
        logits, *routing = session.run(None, inputs)
        clear = (np.abs(expected.probability[part] - thresholds[part, None]) > 1e-3).all(1)
        clear |= np.isin(thresholds[part], (0, 1))
        np.testing.assert_allclose(logits[clear], expected.logits[part][clear], rtol=1e-4, atol=1e-4)
        if routing:
            probabilities, executed = routing
            np.testing.assert_array_equal(executed[clear], expected.executed[part][clear])
            np.testing.assert_allclose(probabilities[clear], expected.probability[part][clear], atol=1e-4)
        compared += int(clear.sum())
    assert compared >= 5


@pytest.mark.parametrize("mode", ["branch", "mask"])
def test_openvino_gives_the_same_output(
    checkpoint: Checkpoint, images: NDArray[np.float32], mode: Mode, exported: Callable[[Mode], Path]
) -> None:
    compiled = openvino_core().compile_model(exported(mode), "CPU", {"INFERENCE_NUM_THREADS": 1})
    # In OpenVINO, the default of `thresholds` is a constant.
    threshold = checkpoint.config.execute_threshold
    expected = ReferenceEngine(checkpoint.network).run(images, np.full(len(images), threshold, np.float32))
    clear = np.flatnonzero((np.abs(expected.probability - threshold) > 1e-3).all(1))
    assert len(clear) >= 5
    for index in clear:
        outputs = compiled({"images": images[[index]]})
        np.testing.assert_allclose(outputs["logits"], expected.logits[[index]], rtol=1e-3, atol=1e-3)
        if checkpoint.network.gate_kind is not None:
            np.testing.assert_array_equal(outputs["executed"], expected.executed[[index]])


def test_weights_of_gated_blocks_are_inside_their_branches(
    checkpoint: Checkpoint, exported: Callable[[Mode], Path]
) -> None:
    """Outside of them, ONNX Runtime does not arrange them for the CPU."""
    graph = onnx.load(exported("branch")).graph
    branches = [node for node in graph.node if node.op_type == "If"]
    assert len(branches) == checkpoint.network.decision_count
    for node in branches:
        then, otherwise = (attribute.g for attribute in sorted(node.attribute, key=lambda a: a.name)[::-1])
        inside = {weight.name for weight in then.initializer}
        convolutions = [inner for inner in then.node if inner.op_type == "Conv"]
        assert len(convolutions) == checkpoint.network.layers_per_block
        assert all(set(convolution.input[1:]) <= inside for convolution in convolutions)
        assert [inner.op_type for inner in otherwise.node] == ["Identity"]


def test_metadata_tell_how_to_use_the_file(checkpoint: Checkpoint, exported: Callable[[Mode], Path]) -> None:
    path = exported("branch")
    session = open_session(path)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == checkpoint.config.labels
    assert json.loads(metadata["input"])["mean"] == list(checkpoint.config.input.mean)
    assert float(metadata["execute_threshold"]) == checkpoint.config.execute_threshold
    assert [file.name for file in path.parent.iterdir()] == ["network.onnx"]
    outputs = {output.name: output.type for output in session.get_outputs()}
    assert outputs.pop("logits") == "tensor(float)"
    if checkpoint.network.gate_kind is not None:
        assert outputs == {"probabilities": "tensor(float)", "executed": "tensor(bool)"}


@pytest.mark.parametrize("mode", ["branch", "mask"])
def test_thresholds_default_to_the_checkpoints_own(
    checkpoint: Checkpoint, images: NDArray[np.float32], mode: Mode, exported: Callable[[Mode], Path]
) -> None:
    session = open_session(exported(mode))
    batch = images[:1] if mode == "branch" else images
    names = [each.name for each in session.get_inputs()]
    assert names == ["images"]
    outputs = session.run(None, {"images": batch})
    if checkpoint.network.gate_kind is not None:
        thresholds = np.full(len(batch), OWN_THRESHOLD, np.float32)
        expected = session.run(None, {"images": batch, "thresholds": thresholds})
        for output, wanted in zip(outputs, expected, strict=True):
            np.testing.assert_array_equal(output, wanted)
        assert (outputs[2] == (outputs[1] > OWN_THRESHOLD)).all()


@pytest.mark.parametrize("threshold", [-0.5, 1.5])
@pytest.mark.parametrize("checkpoint", [name for name in ARCHITECTURES if "resnet" not in name], indirect=True)
def test_thresholds_beyond_0_and_1_are_clipped(
    images: NDArray[np.float32], threshold: float, exported: Callable[[Mode], Path]
) -> None:
    inputs = {"images": images[:1], "thresholds": np.full(1, threshold, np.float32)}
    _, _, executed = open_session(exported("branch")).run(None, inputs)
    assert (executed == (threshold < 0)).all()


def test_blocked_weight_keeps_every_number_in_its_place() -> None:
    weight = np.arange(32 * 16 * 3 * 3, dtype=np.float32).reshape(32, 16, 3, 3)
    blocked = block_weight(weight, 8).reshape(4, 2, 3, 3, 8, 8)
    for output, channel, row, column in [(0, 0, 0, 0), (17, 9, 1, 2), (31, 15, 2, 2)]:
        place = blocked[output // 8, channel // 8, row, column, channel % 8, output % 8]
        assert place == weight[output, channel, row, column]
    with pytest.raises(ValueError, match="blocks of 16"):
        block_weight(weight[:20], 16)
