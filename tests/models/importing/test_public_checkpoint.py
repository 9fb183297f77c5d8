"""The public code's answers for given weights are ours, in every engine: every decision and logits within 1e-4."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from models.engines import load_engine
from models.importing.public_checkpoint import import_public
from tests.research import shared

CASES = [
    "cifar10_resnet_38",
    "cifar10_rnn_gate_38",
    "cifar10_rnn_gate_rl_38",
    "cifar10_feedforward_38",
    "imagenet_rnn_gate_18",
]
ENGINES = [
    "reference",
    "torch",
    "onnxruntime",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(shutil.which(os.environ.get("CXX") or "c++") is None, reason="no C++ compiler here"),
    ),
]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Checkpoint]:
    """A parity case and its weights, imported from a file in the public code's own format."""
    source = shared(f"reference/parity/{request.param}.npz")
    folder = tmp_path_factory.mktemp(request.param)
    public = folder / "public.pth.tar"
    subprocess.run([sys.executable, source.with_name("make_checkpoint.py"), source, public], check=True)
    import_public(public, request.param, folder / "imported" / "1")
    return np.load(source), read_checkpoint(folder / "imported" / "1")


def network_input(case: Any) -> np.ndarray:
    how = json.loads(str(case["meta"]))["normalise"]
    pixels = case["images"].repeat(how["upsample"], 1).repeat(how["upsample"], 2)
    scaled = pixels.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(how["mean"], np.float32)) / np.asarray(how["std"], np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", ENGINES)
def test_public_codes_answers(name: str, case: tuple[Any, Checkpoint]) -> None:
    expected, checkpoint = case
    engine = load_engine(checkpoint, name, "cpu")
    images = network_input(expected)
    thresholds = np.full(len(images), 0.5, np.float32)
    try:
        together = engine.run(images, thresholds)
        alone = [engine.run(images[i : i + 1], thresholds[i : i + 1]) for i in range(len(images))]
    finally:
        engine.close()
    for logits, executed, probability in (
        (together.logits, together.executed, together.probability),
        tuple(np.concatenate([getattr(one, part) for one in alone]) for part in ("logits", "executed", "probability")),
    ):
        np.testing.assert_allclose(logits, expected["logits"], atol=1e-4, rtol=0)
        if "executed" in expected:
            np.testing.assert_array_equal(executed, expected["executed"].astype(bool))
            np.testing.assert_allclose(probability, expected["gate_probability"], atol=1e-4, rtol=0)


def test_a_pickle_that_could_run_code_is_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"state_dict": Malicious()}, tmp_path / "evil.pth.tar")
    with pytest.raises(CheckpointError, match="could run code, exec") as refused:
        import_public(tmp_path / "evil.pth.tar", "cifar10_rnn_gate_38", tmp_path / "out")
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# A text\n", "is no PyTorch checkpoint"),
        (b"", "is no PyTorch checkpoint"),
        (b"PK\x03\x04 cut short", "is damaged, or was not written by torch.save"),
        (pickle.dumps({"state_dict": {}}, protocol=2), "is damaged, or was not written by torch.save"),
        (pickle.dumps("cut short", protocol=2)[:-4], "is damaged, or was not written by torch.save"),
    ],
)
def test_what_is_no_checkpoint_is_told_and_torchs_advice_is_not(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pth.tar").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as refused:
        import_public(tmp_path / "a.pth.tar", "cifar10_rnn_gate_38", tmp_path / "out")
    assert "weights_only" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pth\.tar can't be read: No such file"):
        import_public(tmp_path / "a.pth.tar", "cifar10_rnn_gate_38", tmp_path / "out")


FOREIGN = {
    "another stem": ({"module.conv1.weight": torch.zeros(16, 3, 3, 3)}, "cifar10_rnn_gate_38"),
    "a group too many": ({"group4_layer0.conv1.weight": torch.zeros(512, 256, 3, 3)}, "cifar10_rnn_gate_38"),
    "a plain group too many": ({"layer4.0.conv1.weight": torch.zeros(512, 256, 3, 3)}, "cifar10_resnet_38"),
    "feed-forward gates": ({"group1_gate0.conv1.weight": torch.zeros(10, 16, 3, 3)}, "cifar10_rnn_gate_38"),
    "feed-forward gates of the other kind": (
        {"group1_gate0.conv2.weight": torch.zeros(10, 10, 3, 3)}, "cifar10_feedforward_110",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("state", "arch"), FOREIGN.values(), ids=FOREIGN)
def test_weights_of_another_architecture_are_refused(tmp_path: Path, state: dict[str, Tensor], arch: str) -> None:
    torch.save({"state_dict": state}, tmp_path / "x.pth.tar")
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        import_public(tmp_path / "x.pth.tar", arch, tmp_path / "out")


@pytest.mark.parametrize("saved", [{"model": {}, "epoch": 3}, {"state_dict": [1, 2]}, {"state_dict": {"a": 1}}])
def test_a_file_without_weights_is_told(tmp_path: Path, saved: dict[str, Any]) -> None:
    torch.save(saved, tmp_path / "x.pth.tar")
    with pytest.raises(CheckpointError, match="holds no weights where they are expected"):
        import_public(tmp_path / "x.pth.tar", "cifar10_rnn_gate_38", tmp_path / "out")
