"""A user adds a gate by one file, as docs/own-gate.md says. It works in engines, in training and in benchmarks."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from models import own_gates
from models.architectures import UnknownArchitecture, find_architecture
from models.benchmark import timing
from models.checkpoint import Checkpoint, Config, read_checkpoint, write_checkpoint
from models.engines import load_engine
from models.engines.folding import fold
from models.engines.onnx.engine import create_session
from models.engines.onnx.graph import build_graph
from models.engines.persistent.engine import suits
from models.engines.protocol import EngineError
from models.errors import UserError
from models.evaluation.forced_routes import force_route
from models.macs import count_macs
from models.network import SkipNet
from models.own_gates import OwnGate
from models.preprocessing import InputSpec
from models.training.stages.gate_readout import scale_gate_logits, set_gate_bias
from service.cli.main import main

PAGE = Path(__file__).parents[2] / "docs/own-gate.md"
ARCHITECTURE = "cifar10_squeeze_gate_38"
CONVOLUTIONAL = '''
from torch import nn
from models.own_gates import OwnGate, register

@register("conv")
class ConvolutionGate(OwnGate):
    def __init__(self, channels):
        super().__init__(
            nn.MaxPool2d(2), nn.Conv2d(channels, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1)
        )

@register("untold")
class UntoldGate(OwnGate):
    """A gate whose forward differs from its layers, without the `folded` that it needs."""

    def __init__(self, channels):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))

    def forward(self, x):
        return 3 - super().forward(x)

@register("softmax")
class SoftmaxGate(OwnGate):
    def __init__(self, channels):
        super().__init__(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4), nn.Softmax(1), nn.Linear(4, 1)
        )
'''


@pytest.fixture(autouse=True)
def gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file of the docs and another one, in files that SKIPNET_GATES names."""
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example is not None
    file, other = tmp_path / "squeeze_gate.py", tmp_path / "other.py"
    file.write_text(example[1])
    other.write_text(CONVOLUTIONAL)
    monkeypatch.setenv("SKIPNET_GATES", f"{file}{os.pathsep}{other}")
    yield
    own_gates.KINDS.clear()
    own_gates.load_files.cache_clear()


def varied(kind: str) -> Checkpoint:
    """Return a checkpoint in memory whose gates decide differently for different images."""
    torch.manual_seed(3)
    network = find_architecture(f"cifar10_{kind}_gate_38").build().eval()
    images = torch.from_numpy(pictures())
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.normal_(0, 0.1)
                module.weight.uniform_(0.4, 0.8)

        def centre(gate: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            assert isinstance(gate, OwnGate)
            logits = gate.layers(inputs[0])
            gate.head.weight.mul_(2 / logits.std())
            gate.head.bias.sub_(gate.layers(inputs[0]).mean())

        hooks = [gate.register_forward_pre_hook(centre) for gate in network.gates]
        network(images)
        for hook in hooks:
            hook.remove()
    spec = InputSpec(height=32, width=32, resize=32, mean=(0, 0, 0), std=(1, 1, 1))
    config = Config(architecture=f"cifar10_{kind}_gate_38", labels=list("0123456789"), input=spec, code="test")
    return Checkpoint(Path("nowhere"), config, network)


def pictures() -> NDArray[np.float32]:
    random = np.random.default_rng(7)
    coarse = random.normal(size=(6, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
    return (np.geomspace(0.2, 3, 6)[:, None, None, None] * coarse).astype(np.float32)


THRESHOLDS = np.array([0.5, 0.5, 0.4, 0.6, 0, 1], np.float32)


@pytest.mark.parametrize("kind", ["squeeze", "conv"])
@pytest.mark.parametrize(
    ("name", "routing"),
    [("torch", "branch"), ("torch", "mask"), ("onnxruntime", "branch"), ("onnxruntime", "mask"), ("auto", "auto")],
)
def test_engines_equal_the_reference(kind: str, name: str, routing: str) -> None:
    checkpoint = varied(kind)
    expected = load_engine(checkpoint, "reference", "cpu").run(pictures(), THRESHOLDS)
    assert 0.1 < expected.executed[:4].mean() < 0.9
    engine = load_engine(checkpoint, name, "cpu", 1, routing)
    try:
        result = engine.run(pictures(), THRESHOLDS)
    finally:
        engine.close()
    np.testing.assert_array_equal(result.executed, expected.executed)
    np.testing.assert_allclose(result.logits, expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["squeeze", "conv"])
def test_standard_onnx_graph_equals_the_reference(kind: str) -> None:
    checkpoint = varied(kind)
    session: onnxruntime.InferenceSession = create_session(build_graph(fold(checkpoint.network), mode="mask"), "cpu", 1)
    logits, executed = session.run(["logits", "executed"], {"images": pictures(), "thresholds": THRESHOLDS})
    expected = load_engine(checkpoint, "reference", "cpu").run(pictures(), THRESHOLDS)
    np.testing.assert_array_equal(executed, expected.executed)
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_engines_without_code_for_the_gate_are_named() -> None:
    passed: list[tuple[str, str]] = []
    checkpoint = varied("squeeze")
    engine = load_engine(checkpoint, "auto", "cpu", 1, "branch", lambda *reason: passed.append(reason))
    assert engine.name == "onnxruntime"
    assert passed == [("native", "the native engine has no code for gates of this kind; choose the engine torch")]
    with pytest.raises(EngineError, match="native engine has no code for gates of this kind"):
        load_engine(checkpoint, "native", "cpu", 1)
    assert not suits(fold(checkpoint.network))


def test_layer_that_onnx_runtime_lacks_is_named_and_torch_serves() -> None:
    checkpoint = varied("softmax")
    passed: list[tuple[str, str]] = []
    assert load_engine(checkpoint, "auto", "cpu", 1, "branch", lambda *reason: passed.append(reason)).name == "torch"
    assert [name for name, _ in passed] == ["native", "onnxruntime"]
    assert "no code for the layer Softmax(dim=1) of a gate; choose the engine torch" in passed[1][1]


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_engine_that_computes_something_else_does_not_serve(name: str) -> None:
    with pytest.raises(EngineError, match="its output differs from the reference engine"):
        load_engine(varied("untold"), name, "cpu", 1)


def test_gate_is_counted_biased_scaled_and_forced() -> None:
    network = find_architecture(ARCHITECTURE).build().eval()
    assert count_macs(network, 32, 32).gates[0] == 16 * 8 + 8
    set_gate_bias(network, 2.0)
    scale_gate_logits(network, 3.0)
    gate = network.gates[0]
    assert isinstance(gate, OwnGate)
    assert gate.head.bias.tolist() == [6.0]
    route = np.arange(17) % 3 == 0
    with torch.inference_mode():
        _, routing = force_route(network, route)(torch.from_numpy(pictures()))
    assert (routing.decisions.bool().numpy() == route).all()


def test_macs_of_other_operations_are_counted() -> None:
    class Counting(OwnGate):
        def other_macs(self, x: torch.Tensor) -> int:
            return x[0].numel()

    network = find_architecture("cifar10_squeeze_gate_38").build()
    network.gates[0] = Counting(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))
    assert count_macs(network, 32, 32).gates[0] == 16 * 32 * 32 + 16


def test_gates_are_trained_and_a_checkpoint_is_read(tmp_path: Path) -> None:
    network: SkipNet = find_architecture(ARCHITECTURE).build()
    _, routing = network(torch.from_numpy(pictures()))
    routing.logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.gates.parameters())
    config = varied("squeeze").config
    write_checkpoint(tmp_path / "1", network, config)
    stored = read_checkpoint(tmp_path / "1").network.gates.state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in network.gates.state_dict().items())


def test_command_of_the_page_measures_the_gate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = re.search(r"^skipnet (bench .*)$", PAGE.read_text(), re.MULTILINE)
    assert command is not None
    for name, value in (("WARM_UP", 1), ("TURN", 0), ("LEAST_ROUNDS", 2)):
        monkeypatch.setattr(timing, name, value)
    main([*command[1].split(), "--engines", "torch", "--batches", "2", "--seconds", "0.01"])
    assert ARCHITECTURE in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["rnn", "Squeeze", "a_b", "squeeze", ""])
def test_names_in_use_or_invalid_are_refused(kind: str) -> None:
    assert "squeeze" in own_gates.own_kinds()
    with pytest.raises(UserError, match="cannot name a kind of gate"):
        own_gates.register(kind)


def test_gate_without_a_last_linear_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"the last layer of the gate OwnGate must be nn.Linear"):
        OwnGate(nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(("text", "reason"), [("import nothing_like_it", "No module named"), (None, "No such file")])
def test_file_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, reason: str
) -> None:
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    monkeypatch.setenv("SKIPNET_GATES", str(tmp_path / "bad.py"))
    with pytest.raises(UserError, match=f"bad.py, named by SKIPNET_GATES, cannot be imported: .*{reason}"):
        find_architecture(ARCHITECTURE)


def test_unknown_architecture_lists_the_registered_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownArchitecture, match=r"<data>_KIND_gate_<depth> with KIND one of squeeze, conv"):
        find_architecture("cifar10_other_gate_38")
    monkeypatch.delenv("SKIPNET_GATES")
    own_gates.KINDS.clear()
    with pytest.raises(UnknownArchitecture):
        find_architecture(ARCHITECTURE)
