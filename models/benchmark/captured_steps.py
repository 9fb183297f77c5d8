"""Training's recorded steps against the same steps called: `skipnet verify-gpu`."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.architectures import find_architecture
from models.benchmark.timing import interleave
from models.network import SkipNet
from models.training.graph_capture import CapturedStep
from models.training.hardware import multiplies_bfloat16
from models.training.recipes import Stage, find_recipe
from models.training.stages.batch_norm import freeze_statistics
from models.training.stages.reinforce import draw
from models.training.step import make_forward_backward

BATCH, SIDE, CLASSES = 128, 32, 10
STAGES: dict[Stage, str] = {
    "plain": "cifar10_resnet_38",
    "sp": "cifar10_rnn_gate_38",
    "hrl": "cifar10_rnn_gate_38",
}
TOLERANCE = 1e-3
"""Of a parameter's gradient, by its norm. Nothing was seen to differ; cuDNN may sum in another order."""
SECONDS = 2.0


def compare_recorded(stage: Stage, device: str) -> tuple[float, float]:
    """Return by how much a recorded step's gradients differ from those of the same step called, as a share of the norm
    of the parameter's that differs most, and the recorded step's share of the other's time.
    """
    torch.manual_seed(0)
    on = torch.device(device)
    network = find_architecture(STAGES[stage]).build(CLASSES).to(on).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if stage == "hrl":
        freeze_statistics(network)
    recipe = find_recipe("distilled", stage)
    descend = make_forward_backward(network, recipe, on, multiplies_bfloat16(on), masked=True)
    recorded = CapturedStep(network, descend)

    def batch() -> tuple[Tensor | None, ...]:
        images = torch.randn(BATCH, 3, SIDE, SIDE, device=on).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(CLASSES, (BATCH,), device=on)
        uniform = draw(BATCH, network.decision_count, recipe, torch.Generator().manual_seed(0)).to(on)
        answers = torch.randn(BATCH, CLASSES, device=on)
        return images, labels, torch.tensor(0.5, device=on), uniform if stage == "hrl" else None, answers

    # Recorded with one batch, asked about another.
    recorded(*batch())
    asked = batch()
    statistics = [buffer.clone() for buffer in network.buffers()]
    recorded(*asked)
    found = gradients(network)
    for buffer, before in zip(network.buffers(), statistics, strict=True):
        buffer.copy_(before)
    descend(*asked)
    expected = gradients(network)
    worst = max(float((found[name] - each).norm() / each.norm().clamp(min=1e-12)) for name, each in expected.items())
    # A recording has gradients of its own: what is called between its replays takes nothing from it.
    steps = {"recorded": finished(lambda: recorded(*asked)), "called": finished(lambda: descend(*asked))}
    timings = interleave(steps, SECONDS)
    return worst, timings["recorded"].share_of(timings["called"])[0]


def gradients(network: SkipNet) -> dict[str, Tensor]:
    """Return copies of the gradients, by the names of their parameters."""
    return {name: each.grad.clone() for name, each in network.named_parameters() if each.grad is not None}


def finished(step: Callable[[], object]) -> Callable[[], object]:
    """Return the step that waits until the device has done it."""

    def run() -> None:
        step()
        torch.cuda.synchronize()

    return run
