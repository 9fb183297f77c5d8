"""Skipped blocks are not computed. The tests count convolutions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from models.engines.folding import FoldedNetwork, fold
from models.engines.native.engine import NativeEngine
from models.engines.onnx import engine as onnx_session
from models.engines.onnx.engine import OnnxRuntimeEngine
from models.engines.protocol import Engine
from models.engines.torch.engine import TorchEngine
from models.network import SkipNet

THRESHOLDS = (0, 0.5, 1)


@pytest.fixture(scope="module", params=["cifar10_rnn_gate_38", "imagenet_rnn_gate_50"])
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folded(architecture: str, varied_network: Callable[[str], SkipNet]) -> FoldedNetwork:
    return fold(varied_network(architecture))


@pytest.fixture(scope="module")
def image(architecture: str, make_images: Callable[[str], NDArray[np.float32]]) -> NDArray[np.float32]:
    return make_images(architecture)[4:5]


def expected_convolutions(folded: FoldedNetwork, executed: NDArray[np.bool_]) -> int:
    """Return the number of convolutions for decisions [B-1]: stem, projections, first block and executed blocks."""
    first, *others = folded.blocks
    projections = sum(block.projection is not None for block in folded.blocks)
    ran = sum(len(block.residual) for block, runs in zip(others, executed, strict=True) if runs)
    return 1 + projections + len(first.residual) + ran


def check(engine: Engine, image: NDArray[np.float32], folded: FoldedNetwork, count: Callable[[], int]) -> None:
    """Run ``image`` at several thresholds. ``count`` returns the convolutions since its last call."""
    seen = set()
    for threshold in THRESHOLDS:
        routed = engine.run(image, np.full(1, threshold, np.float32))
        expected = expected_convolutions(folded, routed.executed[0])
        assert count() == expected
        seen.add(expected)
    assert len(seen) == len(THRESHOLDS)


def test_torch(folded: FoldedNetwork, image: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    convolve = torch.nn.functional.conv2d

    def counting(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        counted.append(len(x))
        out: torch.Tensor = convolve(x, *arguments)
        return out

    def count() -> int:
        total = sum(counted)
        counted.clear()
        return total

    monkeypatch.setattr(torch.nn.functional, "conv2d", counting)
    engine = TorchEngine(folded)
    check(engine, image, folded, count)
    # In a batch, each block runs only on the images that execute it.
    batch = np.concatenate([image, image * 0.2, image * 3])
    routed = engine.run(batch, np.array([0, 0.5, 1], np.float32))
    assert count() == sum(expected_convolutions(folded, executed) for executed in routed.executed)


def test_onnxruntime(
    folded: FoldedNetwork, image: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = onnx_session.session_options

    def profiling(threads: int) -> onnxruntime.SessionOptions:
        options = plain(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        return options

    size = onnx_session.blocked_layout()
    monkeypatch.setattr(onnx_session, "session_options", profiling)
    for layout in {1, size}:
        monkeypatch.setattr(onnx_session, "blocked_layout", lambda layout=layout: layout)
        for threshold in THRESHOLDS:
            engine = OnnxRuntimeEngine(folded)
            routed = engine.run(image, np.full(1, threshold, np.float32))
            events = json.loads(Path(engine.session.end_profiling()).read_text())
            kernels = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
            ran = sum(kernel in ("Conv", "FusedConv") for kernel in kernels)
            assert ran == expected_convolutions(folded, routed.executed[0])
            engine.close()


def test_native(folded: FoldedNetwork, image: NDArray[np.float32]) -> None:
    engine = NativeEngine(folded, 1)
    # The native engine counts the convolutions of blocks, without the stem's.
    check(engine, image, folded, lambda: 1 + int(engine.convolutions.sum()))
    engine.close()
