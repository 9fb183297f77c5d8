"""Imported networks give the public code's outputs in every engine: all decisions equal, logits within 1e-4."""

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.architectures import find_architecture
from models.checkpoint import Checkpoint, read_checkpoint, read_config
from models.engines import load_engine
from models.errors import UserError
from models.importing.source import import_source
from models.network import SkipNet
from service.cli.main import main
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
    import_source(str(public), folder / "imported" / "1", request.param)
    return np.load(source), read_checkpoint(folder / "imported" / "1")


def network_input(case: Any) -> np.ndarray:
    how = json.loads(str(case["meta"]))["normalise"]
    pixels = case["images"].repeat(how["upsample"], 1).repeat(how["upsample"], 2)
    scaled = pixels.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(how["mean"], np.float32)) / np.asarray(how["std"], np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", ENGINES)
def test_outputs_equal_the_public_codes(name: str, case: tuple[Any, Checkpoint]) -> None:
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


def test_pickle_that_could_run_code_is_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"state_dict": Malicious()}, tmp_path / "evil.pth.tar")
    with pytest.raises((UserError, ValueError), match="could run code, exec") as refused:
        import_source(str(tmp_path / "evil.pth.tar"), tmp_path / "out", "cifar10_rnn_gate_38")
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# A text\n", "is neither a file of torch.save nor a safetensors file"),
        (b"", "is neither a file of torch.save nor a safetensors file"),
        (b"PK\x03\x04 cut short", "is damaged, or was not written by torch.save"),
        (pickle.dumps({"state_dict": {}}, protocol=2), "is damaged, or was not written by torch.save"),
        (pickle.dumps("cut short", protocol=2)[:-4], "is damaged, or was not written by torch.save"),
    ],
)
def test_other_files_are_refused_without_torchs_advice(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pth.tar").write_bytes(content)
    with pytest.raises((UserError, ValueError), match=message) as refused:
        import_source(str(tmp_path / "a.pth.tar"), tmp_path / "out", "cifar10_rnn_gate_38")
    assert "weights_only" not in str(refused.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises((UserError, ValueError), match=r"a\.pth\.tar cannot be read: No such file"):
        import_source(str(tmp_path / "a.pth.tar"), tmp_path / "out", "cifar10_rnn_gate_38")


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
    with pytest.raises((UserError, ValueError), match=r"does not hold the weights.*check --arch, here cifar10_"):
        import_source(str(tmp_path / "x.pth.tar"), tmp_path / "out", arch)


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best_prec1": torch.tensor(91.5)},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "nested": lambda state: {"model": {"state_dict": state}},
    "DataParallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "torch.compile": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "Lightning": lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
    "all": lambda state: {"model": {f"model._orig_mod.module.{key}": value for key, value in state.items()}},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> SkipNet:
    torch.manual_seed(0)
    return find_architecture("cifar10_rnn_gate_38").build(4)


def assert_imported(source: Path, trained: SkipNet, output: Path) -> None:
    config = import_source(str(source), output, "cifar10_rnn_gate_38")
    assert config.labels == ["0", "1", "2", "3"]
    stored = read_checkpoint(output).network.state_dict()
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(stored[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_weights_with_another_class_count_are_read(
    tmp_path: Path, trained: SkipNet, wrap: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> None:
    torch.save(wrap(trained.state_dict()), tmp_path / "weights.pth")
    assert_imported(tmp_path / "weights.pth", trained, tmp_path / "out")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.model."])
def test_safetensors_files_are_read(tmp_path: Path, trained: SkipNet, prefix: str) -> None:
    save_file({f"{prefix}{key}": value for key, value in trained.state_dict().items()}, tmp_path / "w.safetensors")
    assert_imported(tmp_path / "w.safetensors", trained, tmp_path / "out")


def test_known_class_count_keeps_the_names_of_the_classes(tmp_path: Path) -> None:
    torch.save(find_architecture("cifar10_resnet_38").build().state_dict(), tmp_path / "a.pt")
    assert import_source(str(tmp_path / "a.pt"), tmp_path / "out", "cifar10_resnet_38").labels[3] == "cat"


def test_hint_about_a_pickle_in_a_checkpoint_folder_can_be_followed(tmp_path: Path, trained: SkipNet) -> None:
    folder = tmp_path / "repository" / "mine" / "1"
    folder.mkdir(parents=True)
    torch.save(trained.state_dict(), folder / "weights.pth")
    with pytest.raises((UserError, ValueError), match="convert it: skipnet import") as refused:
        read_config(folder)
    command = str(refused.value).partition("convert it: skipnet ")[2].replace("NAME", "cifar10_rnn_gate_38")
    main(shlex.split(command))
    assert read_checkpoint(folder).config.labels == ["0", "1", "2", "3"]


def test_command_says_what_to_do_next(tmp_path: Path, trained: SkipNet, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    main(["import", str(tmp_path / "weights.pth"), "--arch", "cifar10_rnn_gate_38", "--output", str(tmp_path / "out")])
    output = capsys.readouterr().out
    assert "cifar10_rnn_gate_38, 4 classes" in output
    assert f"write the names of the classes into `labels` in {tmp_path / 'out' / 'config.json'}" in output
    assert f"skipnet evaluate {tmp_path / 'out'} --dataset cifar10 --data FOLDER --write" in output


def test_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b'\x10\0\0\0\0\0\0\0{"cut')
    with pytest.raises(UserError, match="is a damaged safetensors file"):
        import_source(str(tmp_path / "a.safetensors"), tmp_path / "out", "cifar10_rnn_gate_38")


@pytest.mark.parametrize("saved", [{"model": {}, "epoch": 3}, {"state_dict": [1, 2]}, {"state_dict": {"a": 1}}])
def test_file_without_weights_is_refused(tmp_path: Path, saved: dict[str, Any]) -> None:
    torch.save(saved, tmp_path / "x.pth.tar")
    with pytest.raises((UserError, ValueError), match="holds no weights: a state dict is expected"):
        import_source(str(tmp_path / "x.pth.tar"), tmp_path / "out", "cifar10_rnn_gate_38")
