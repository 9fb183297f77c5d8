import gc
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest
import torch

from models.architectures import find_architecture
from models.benchmark import timing
from models.benchmark import training_steps as training
from models.benchmark.curve import draw_curve
from models.benchmark.energy import joules_per_run, open_meter
from models.benchmark.gpu.dense_torch import DenseTorch, Function, operators
from models.benchmark.markdown_table import draw_table
from models.benchmark.other_engines import other_engines
from models.benchmark.subject import Subject
from models.benchmark.suite import OWN_ROUTING, PUBLIC_CODE, Measurement, run_suite
from models.benchmark.timing import interleave
from models.evaluation.forced_routes import force_route, random_network, spread_evenly, without_gates
from models.network import SkipNet


@pytest.mark.parametrize("name", ["cifar10_rnn_gate_38", "cifar10_feedforward_38", "cifar10_feedforward_110"])
@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_forced_networks_take_the_given_routes(name: str, share: float) -> None:
    network = random_network(name)
    route = spread_evenly(network.decision_count, share)
    assert route.mean() == pytest.approx(share, abs=0.03)
    with torch.inference_mode():
        _, routing = force_route(network, route)(torch.randn(2, 3, 32, 32))
    np.testing.assert_array_equal(routing.decisions.bool().numpy(), np.stack([route, route]))


def test_the_plain_network_is_the_routed_one_with_every_block_executed() -> None:
    network = random_network("cifar10_rnn_gate_38")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        routed, _ = force_route(network, np.ones(17, np.bool_))(images)
        plain, _ = without_gates(network, find_architecture("cifar10_rnn_gate_38"))(images)
    torch.testing.assert_close(plain, routed)


def test_each_contender_runs_once_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TURN", 0)
    runs: list[str] = []
    timings = interleave({"a": lambda: runs.append("a"), "b": lambda: runs.append("b")}, seconds=0)
    assert runs[: 2 * timing.WARM_UP] == ["a"] * timing.WARM_UP + ["b"] * timing.WARM_UP
    # A turn is an untimed run and timed runs. Here one timed run fills the turn.
    turns = runs[2 * timing.WARM_UP :]
    for first in range(0, len(turns), 4):
        assert "".join(turns[first : first + 4]) in ("aabb", "bbaa")
    assert {"aabb", "bbaa"} == {"".join(turns[first : first + 4]) for first in range(0, len(turns), 4)}
    assert len(timings["a"].seconds) == len(timings["b"].seconds) == timing.LEAST_ROUNDS
    assert timings["a"].share_of(timings["a"]) == (1, 1, 1)


def test_a_run_of_the_suite_counts_macs_and_draws_its_curve() -> None:
    name = "cifar10_rnn_gate_38"
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    seen: list[Measurement] = []
    rows = []
    for own_routing in (False, True):
        subject = Subject(name, name, random_network(name), images, own_routing)
        rows += run_suite(
            subject,
            engines=["torch", "native_int16"],
            batches=[2],
            threads=[1],
            shares=[0.0, 1.0],
            seconds=0,
            progress=seen.append,
            others=False,
        )
    assert seen == rows
    by_routing = {(row.routing, row.engine): row for row in rows}
    assert by_routing["0% of the blocks", "torch"].mac_share == pytest.approx(0.065, abs=1e-3)
    assert by_routing["100% of the blocks", "torch"].mac_share == pytest.approx(1.0002, abs=1e-3)
    assert by_routing[OWN_ROUTING, PUBLIC_CODE].mac_share == pytest.approx(1.0002, abs=1e-3)
    assert by_routing[OWN_ROUTING, "torch"].mac_share <= 1.0003
    assert sum(row.wall_share == 1 and row.routing == "dense" for row in rows) == 2
    table = [line for line in draw_table(rows).splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert {line.count("|") for line in table} == {9}
    assert "| ms per batch |" in table[0]
    assert draw_curve(rows, "A & B").count("(batch 2, torch)") == 1


@pytest.mark.parametrize("name", ["onnxruntime, int8", "openvino, float32", "openvino, int8"])
def test_other_engines_run_the_dense_network(name: str) -> None:
    architecture = "cifar10_rnn_gate_38"
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    subject = Subject(architecture, architecture, random_network(architecture), images, False)
    plain = without_gates(subject.network, find_architecture(architecture))
    engine = other_engines(subject.checkpoint(plain), threads=1)[name]()
    output = engine.run(images, np.zeros(2, np.float32))
    with torch.inference_mode():
        expected = plain(torch.from_numpy(images))[0].numpy()
    difference = np.abs(output.logits - expected).max() / np.abs(expected).max()
    assert difference < 1e-4 if "float32" in name else 1e-4 < difference < 0.3
    assert output.executed.all()


def test_engines_of_openvino_may_be_deleted_in_any_order() -> None:
    architecture = "cifar10_resnet_14"
    images = np.zeros((1, 3, 32, 32), np.float32)
    subject = Subject(architecture, architecture, find_architecture(architecture).build().eval(), images, False)
    makers = other_engines(subject.checkpoint(subject.network), threads=1)
    engines = [makers[name]() for name in ("openvino, float32", "openvino, int8")]
    while engines:
        del engines[0]
        gc.collect()
    # With a Core for each engine, this handler has no stack to run on.
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]


def test_energy_is_the_difference_of_the_meter_per_run() -> None:
    drawn = [0.0]

    def run() -> None:
        drawn[0] += 0.25

    assert joules_per_run(run, lambda: drawn[0], span_s=0.01) == pytest.approx(0.25)
    assert open_meter("cpu") is None


def test_a_gpu_without_an_energy_counter_has_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: object) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="8f-1"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    requested: list[str] = []
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", requested.append)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda _: 2500)
    meter = open_meter("cuda:0")
    assert meter is not None and meter() == 2.5
    assert requested == ["GPU-8f-1"]
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", unsupported)
    assert open_meter("cuda:0") is None


@pytest.mark.parametrize("compiled", [False, True])
def test_dense_torch_has_the_output_of_the_network(compiled: bool) -> None:
    """torch's tracer replaces max-autotune and TensorRT, which begin with it."""
    plain = without_gates(random_network("cifar10_rnn_gate_38"), find_architecture("cifar10_rnn_gate_38"))
    trace = partial(torch.compile, backend="eager", fullgraph=True, dynamic=False)

    def form(network: SkipNet, device: str, dtype: torch.dtype) -> Function:
        function = operators(network, device, dtype)
        return trace(function) if compiled else function

    engine = DenseTorch(plain, "cpu", form, torch.float32)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    with torch.inference_mode():
        expected, _ = plain(torch.from_numpy(images))
    result = engine.run(images, np.zeros(2, np.float32))
    np.testing.assert_allclose(result.logits, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert result.executed.all()
    half = DenseTorch(plain, "cpu", operators, torch.bfloat16)
    assert np.isfinite(half.run(images, np.zeros(2, np.float32)).logits).all()


def test_training_steps_are_measured_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (timing, "WARM_UP", 1), (timing, "TURN", 0), (timing, "LEAST_ROUNDS", 2),
        (training, "BATCH", 4), (training, "IMAGES", 8), (training, "WORKERS", 0),
        (training, "gains_by_compiling", lambda *_: False),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    supervised, halved, hybrid = training.compare_steps("cifar10_rnn_gate_38", 0, 1)
    for found in (supervised, halved, hybrid):
        assert found.time_share_low <= found.time_share <= found.time_share_high
        assert found.images_per_second > 0 and found.rival_images_per_second > 0
    assert supervised.step.startswith("SP at all the blocks") and "public code" in supervised.rival
    assert "at half the blocks" in halved.step and "public code" in halved.rival
    assert "skipping" in hybrid.step and "masked" in hybrid.rival


def test_images_augmented_one_by_one_are_crops_of_the_padded_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), np.uint8)
    augmented = training.AugmentedOneByOne(pixels)
    mean, std = (torch.tensor(values)[:, None, None] for values in (training.DATASET.mean, training.DATASET.std))
    found = [augmented[0][0] * std + mean for _ in range(40)]
    original = torch.from_numpy(pixels[0]).permute(2, 0, 1) / 255
    # Every image is a crop of the padded one, which may be mirrored.
    padded = torch.nn.functional.pad(original, (4,) * 4)
    windows = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32)
    windows = torch.cat((windows, windows.flip(3)))
    for image in found:
        assert (windows - image).abs().amax((1, 2, 3)).min() < 1e-5
    assert len({float(image.sum()) for image in found}) > 20
