"""Inputs made to burn compute: how much of what skipping saves can a small perturbation take back?

Haque et al., "ILFO: Adversarial Attack on Adaptive Neural Networks", CVPR 2020, push a network's gates open by
optimising its input; here by projected gradient steps (Madry et al. 2018) within a bound on every pixel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.analysis.images import Pixels, Sample
from models.analysis.routes import Answers, Runner
from models.data.augmentation import normalise
from models.macs import MacCounts
from models.network import SkipNet, decide_at, limits_of
from models.preprocessing import InputSpec

STEPS, MARGIN = 20, 1.0
"""Steps of the attack, and the logit beyond the threshold up to which it pushes a gate."""
BATCH = 50


@dataclass(frozen=True)
class Attack:
    """What a perturbation of at most ``bound`` (of 255) a channel and pixel did; MACs are means over dense ones."""

    kind: str
    bound: float
    images: int
    mac_share_before: float
    mac_share_after: float
    saving_taken_back: float
    accuracy_before: float
    accuracy_after: float


def attack(network: SkipNet, spec: InputSpec, pixels: Pixels, threshold: float, bound: float) -> Pixels:
    """Return the images [N, H, W, 3], no value farther than ``bound`` of 255 from before, with their gates pushed open.

    The network is differentiated along the route that each image takes, decisions as they fall at ``threshold``.
    Of an image's steps the one that executed most blocks is kept, as whole pixel values: what a file can carry.
    """
    limit, route = limits_of(torch.tensor(threshold)), decide_at(threshold)
    random = torch.Generator().manual_seed(0)
    attacked = []
    for start in range(0, len(pixels), BATCH):
        clean = torch.from_numpy(np.moveaxis(pixels[start : start + BATCH], -1, 1).astype(np.float32))
        moved = clean + bound * (2 * torch.rand(clean.shape, generator=random) - 1)
        best, most = clean.clone(), torch.full((len(clean),), -1.0)
        for step in range(STEPS + 1):
            moved = within(moved, clean, bound).round().requires_grad_()
            with torch.enable_grad():
                _, routing = network(normalise(moved, spec.mean, spec.std), route)
                distance = (limit + MARGIN - routing.logits).clamp(min=0)
                (gradient,) = torch.autograd.grad(distance.sum(), moved)
            better = routing.decisions.sum(1) > most
            most = torch.where(better, routing.decisions.sum(1), most)
            best[better] = moved.detach()[better]
            # Half the way across at first, a fine step at last, never less than the one value that rounding leaves.
            pace = max(1.0, bound / 2 * (1 - step / STEPS))
            moved = moved.detach() - pace * gradient.sign()
        attacked.append(np.moveaxis(best.numpy().astype(np.uint8), 1, -1))
    return np.concatenate(attacked)


def within(moved: Tensor, clean: Tensor, bound: float) -> Tensor:
    return moved.detach().clamp(min=clean - bound, max=clean + bound).clamp(0, 255)


def measure_attacks(
    network: SkipNet, runner: Runner, macs: MacCounts, sample: Sample, bounds: tuple[int, ...]
) -> list[Attack]:
    """Return what the attack does at each bound, and beside it random noise of the same bound.

    The engine itself measures it, on whole pixel values.
    """
    before = runner.answer(sample.pixels)
    rows = []
    for bound in bounds:
        noise = np.random.default_rng(0).choice((-bound, bound), sample.pixels.shape)
        noisy = np.clip(sample.pixels.astype(np.int16) + noise, 0, 255).astype(np.uint8)
        pushed = attack(network, runner.spec, sample.pixels, runner.threshold, bound)
        for kind, pixels in (("random noise", noisy), ("attack", pushed)):
            rows.append(compare(kind, bound, macs, sample.labels, before, runner.answer(pixels)))
    return rows


def compare(
    kind: str, bound: int, macs: MacCounts, labels: NDArray[np.int64], before: Answers, after: Answers
) -> Attack:
    spent, burnt = (float(macs.executed(answers.executed).mean()) for answers in (before, after))
    full = float(macs.executed(np.ones_like(before.executed)).mean())
    return Attack(
        kind=kind,
        bound=bound,
        images=len(labels),
        mac_share_before=spent / macs.dense,
        mac_share_after=burnt / macs.dense,
        saving_taken_back=(burnt - spent) / (full - spent) if full > spent else 0.0,
        accuracy_before=float((before.predicted == labels).mean()),
        accuracy_after=float((after.predicted == labels).mean()),
    )
