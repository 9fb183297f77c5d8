"""Training steps captured as CUDA graphs, with substitutes for streams and graphs on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.architectures import find_architecture
from models.benchmark.gpu import captured_steps
from models.benchmark.gpu.checks import check_training
from models.training.graph_capture import WARM_UP_RUNS, CapturedStep
from models.training.objective import Step
from models.training.recipes import Stage, find_recipe
from models.training.stages.batch_norm import freeze_statistics
from models.training.stages.reinforce import draw
from models.training.step import is_captured, make_forward_backward

STAGES: list[Stage] = ["plain", "sp", "hrl"]


class FakeGraph:
    """A substitute for a CUDA graph that counts its replays."""

    captures: list["FakeGraph"]

    def __init__(self) -> None:
        self.replays = 0
        FakeGraph.captures.append(self)

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """Replace CUDA's streams and graphs by substitutes on the CPU."""

    class Stream:
        def __init__(self, *_: object) -> None: ...
        def wait_stream(self, _: object) -> None: ...

    @contextmanager
    def capture(graph: FakeGraph, stream: Stream) -> Iterator[None]:
        assert isinstance(stream, Stream) and graph.replays == 0
        yield

    FakeGraph.captures = []
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return FakeGraph.captures


def test_a_step_is_captured_once_and_reads_buffers(graphs: list[FakeGraph]) -> None:
    network = nn.BatchNorm1d(2)
    given: list[tuple[Tensor | None, ...]] = []

    def run_step(*inputs: Tensor | None) -> Step:
        given.append(inputs)
        assert inputs[0] is not None
        loss = network(inputs[0]).sum()
        return Step(loss, loss, loss)

    captured_step = CapturedStep(network, run_step)
    first, second = torch.randn(4, 2), torch.randn(4, 2)
    step = captured_step(first, None)
    assert captured_step(second, None) is step
    assert len(graphs) == 1 and graphs[0].replays == 2
    # The function ran for the warm-up and the capture, always on the buffers.
    assert len(given) == WARM_UP_RUNS + 1
    buffers = {id(inputs[0]) for inputs in given}
    assert len(buffers) == 1 and id(first) not in buffers
    assert torch.equal(given[-1][0], second) and given[-1][1] is None  # type: ignore[arg-type]


def test_the_warm_up_keeps_the_statistics_of_batch_norm(graphs: list[FakeGraph]) -> None:
    network = find_architecture("cifar10_rnn_gate_38").build().train()
    recipe = find_recipe("distilled", "sp")
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    captured_step = CapturedStep(
        network, make_forward_backward(network, recipe, torch.device("cpu"), False, masked=True)
    )
    captured_step(torch.randn(4, 3, 32, 32), torch.arange(4), torch.tensor(0.5), None, torch.randn(4, 10))
    assert graphs[0].replays == 1
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_a_step_that_skips_is_not_captured() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for stage in STAGES:
        recipe = find_recipe("distilled", stage)
        assert is_captured(recipe, cuda) and not is_captured(recipe, cpu)
        # SP and plain training use the statistics of the batch, masked or not.
        assert is_captured(replace(recipe, statistics="executed"), cuda) == (stage != "hrl")


def test_masked_hrl_has_the_gradients_of_skipping_hrl() -> None:
    torch.manual_seed(0)
    network = find_architecture("cifar10_rnn_gate_38").build().train()
    freeze_statistics(network)
    recipe = find_recipe("distilled", "hrl")
    uniform = draw(4, network.decision_count, recipe, torch.Generator().manual_seed(0))
    batch = torch.randn(4, 3, 32, 32), torch.arange(4), torch.tensor(1.0), uniform, torch.randn(4, 10)
    found = []
    for masked in (True, False):
        step = make_forward_backward(network, recipe, torch.device("cpu"), False, masked=masked)(*batch)
        found.append((step.loss.item(), captured_steps.gradients(network)))
    (loss, gradients), (expected_loss, expected) = found
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        torch.testing.assert_close(gradients[name], each, atol=1e-5 * largest, rtol=1e-3, msg=name)


@pytest.mark.parametrize("off", [0.0, 0.01])
def test_a_captured_step_with_other_gradients_is_found(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Uncaptured:
        def __init__(self, network: nn.Module, run_step: object) -> None:
            self.network, self.run_step = network, run_step

        def __call__(self, *inputs: Tensor | None) -> Step:
            step: Step = self.run_step(*inputs)  # type: ignore[operator]
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter.grad *= 1 + off
            return step

    for name, value in (("CapturedStep", Uncaptured), ("BATCH", 4), ("SECONDS", 0.0)):
        monkeypatch.setattr(captured_steps, name, value)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    checks = list(check_training("cpu"))
    assert [check.engine for check in checks] == [f"{stage}, captured" for stage in STAGES]
    for check in checks:
        assert check.passed == (off == 0), check
        assert f"gradients within {off or 0:.1e}" in check.found
