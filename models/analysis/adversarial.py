"""Adversarial inputs that make a network execute more blocks.

After ILFO (Haque et al., "ILFO: Adversarial Attack on Adaptive Neural Networks", CVPR 2020), which optimises an input
so that the gates execute. Here projected gradient descent (Madry et al. 2018) does this within a bound on every pixel
value.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.analysis.routes import Outputs, Runner
from models.analysis.sample import Pixels, Sample
from models.data.augmentation import normalise
from models.gates import Limits
from models.macs import MacCounts
from models.network import SkipNet, decide_at
from models.preprocessing import InputSpec

STEPS, MARGIN = 20, 1.0
"""Steps of the attack, and how far beyond the threshold's logit it pushes a gate."""
BATCH = 50


@dataclass(frozen=True)
class AttackResult:
    """The effect of changing each pixel value by at most ``bound`` of 255.

    MAC shares are means over the images, relative to the dense network.
    """

    kind: str
    bound: float
    images: int
    mac_share_before: float
    mac_share_after: float
    saving_taken_back: float
    accuracy_before: float
    accuracy_after: float


def attack(network: SkipNet, spec: InputSpec, pixels: Pixels, threshold: float, bound: float) -> Pixels:
    """Return adversarial copies of images [N, H, W, 3] that execute more blocks.

    No value moves by more than ``bound`` of 255. The gradient is taken along the route of each image at ``threshold``.
    The result of the step that executes most blocks is returned, in integer pixel values as in an image file.
    """
    logit_limit, route = Limits.of(threshold).logits, decide_at(threshold)
    random = torch.Generator().manual_seed(0)
    attacked = []
    for start in range(0, len(pixels), BATCH):
        clean = torch.from_numpy(np.moveaxis(pixels[start : start + BATCH], -1, 1).astype(np.float32))
        moved = clean + bound * (2 * torch.rand(clean.shape, generator=random) - 1)
        best, most = clean.clone(), torch.full((len(clean),), -1.0)
        for step in range(STEPS + 1):
            moved = project(moved, clean, bound).round().requires_grad_()
            with torch.enable_grad():
                _, routing = network(normalise(moved, spec.mean, spec.std), route)
                distance = (logit_limit + MARGIN - routing.logits).clamp(min=0)
                (gradient,) = torch.autograd.grad(distance.sum(), moved)
            better = routing.decisions.sum(1) > most
            most = torch.where(better, routing.decisions.sum(1), most)
            best[better] = moved.detach()[better]
            # Steps shrink from half the bound to 1, the smallest change that survives rounding.
            step_size = max(1.0, bound / 2 * (1 - step / STEPS))
            moved = moved.detach() - step_size * gradient.sign()
        attacked.append(np.moveaxis(best.numpy().astype(np.uint8), 1, -1))
    return np.concatenate(attacked)


def project(moved: Tensor, clean: Tensor, bound: float) -> Tensor:
    """Return the nearest valid pixel values that are within ``bound`` of ``clean``."""
    return moved.detach().clamp(min=clean - bound, max=clean + bound).clamp(0, 255)


def measure_attacks(
    network: SkipNet, runner: Runner, macs: MacCounts, sample: Sample, bounds: tuple[int, ...]
) -> list[AttackResult]:
    """Return the effect of random noise and of the attack at each bound, measured by the engine."""
    before = runner.run(sample.pixels)
    results = []
    for bound in bounds:
        noise = np.random.default_rng(0).choice((-bound, bound), sample.pixels.shape)
        noisy = np.clip(sample.pixels.astype(np.int16) + noise, 0, 255).astype(np.uint8)
        pushed = attack(network, runner.spec, sample.pixels, runner.threshold, bound)
        for kind, pixels in (("random noise", noisy), ("attack", pushed)):
            results.append(compare(kind, bound, macs, sample.labels, before, runner.run(pixels)))
    return results


def compare(
    kind: str, bound: int, macs: MacCounts, labels: NDArray[np.int64], before: Outputs, after: Outputs
) -> AttackResult:
    """Return the MACs and the accuracy before and after a perturbation."""
    spent, attacked = (float(macs.executed(outputs.executed).mean()) for outputs in (before, after))
    full = float(macs.executed(np.ones_like(before.executed)).mean())
    return AttackResult(
        kind=kind,
        bound=bound,
        images=len(labels),
        mac_share_before=spent / macs.dense,
        mac_share_after=attacked / macs.dense,
        saving_taken_back=(attacked - spent) / (full - spent) if full > spent else 0.0,
        accuracy_before=float((before.predicted == labels).mean()),
        accuracy_after=float((after.predicted == labels).mean()),
    )
