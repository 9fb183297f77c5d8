"""Compare training steps captured as CUDA graphs with the same steps run eagerly: `skipnet verify-gpu`."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.architectures import find_architecture
from models.benchmark.timing import interleave
from models.network import SkipNet
from models.training.graph_capture import CapturedStep
from models.training.recipes import Stage, find_recipe
from models.training.setup.hardware import multiplies_bfloat16
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
"""The allowed relative difference of a gradient. cuDNN may sum in another order."""
SECONDS = 2.0


def compare_captured(stage: Stage, device: str) -> tuple[float, float]:
    """Return the largest relative difference of a gradient, and the time relative to the eager step."""
    torch.manual_seed(0)
    on = torch.device(device)
    network = find_architecture(STAGES[stage]).build(CLASSES).to(on).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if stage == "hrl":
        freeze_statistics(network)
    recipe = find_recipe("distilled", stage)
    descend = make_forward_backward(network, recipe, on, multiplies_bfloat16(on), masked=True)
    captured = CapturedStep(network, descend)

    def batch() -> tuple[Tensor | None, ...]:
        images = torch.randn(BATCH, 3, SIDE, SIDE, device=on).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(CLASSES, (BATCH,), device=on)
        uniform = draw(BATCH, network.decision_count, recipe, torch.Generator().manual_seed(0)).to(on)
        teacher_logits = torch.randn(BATCH, CLASSES, device=on)
        return images, labels, torch.tensor(0.5, device=on), uniform if stage == "hrl" else None, teacher_logits

    # The step is captured with one batch and replayed with another.
    captured(*batch())
    inputs = batch()
    statistics = [buffer.clone() for buffer in network.buffers()]
    captured(*inputs)
    found = gradients(network)
    for buffer, before in zip(network.buffers(), statistics, strict=True):
        buffer.copy_(before)
    descend(*inputs)
    expected = gradients(network)
    worst = max(float((found[name] - each).norm() / each.norm().clamp(min=1e-12)) for name, each in expected.items())
    # A captured step has its own gradient tensors, so eager steps between its replays do not affect it.
    steps = {"captured": finished(lambda: captured(*inputs)), "eager": finished(lambda: descend(*inputs))}
    timings = interleave(steps, SECONDS)
    return worst, timings["captured"].share_of(timings["eager"])[0]


def gradients(network: SkipNet) -> dict[str, Tensor]:
    """Return copies of the gradients, by the names of their parameters."""
    return {name: each.grad.clone() for name, each in network.named_parameters() if each.grad is not None}


def finished(step: Callable[[], object]) -> Callable[[], object]:
    """Return a function that runs the step and waits for the device."""

    def run() -> None:
        step()
        torch.cuda.synchronize()

    return run
