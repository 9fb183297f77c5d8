"""How stable the decisions are under small changes, and how well calibrated the gate probabilities are."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.analysis.alterations import compress_jpeg, shift
from models.analysis.routes import Outputs, Runner
from models.analysis.sample import Pixels
from models.network import SkipNet, decide_at
from models.preprocessing import normalise

BINS = 10
HALF_BATCH = 50


@dataclass(frozen=True)
class FlipRates:
    """The shares (0..1) of decisions, routes and classes that differ from those of the unaltered image.

    ``blocks`` is the mean increase in executed blocks.
    """

    change: str
    decisions: float
    routes: float
    classes: float
    blocks: float


@dataclass(frozen=True)
class ReliabilityBin:
    """The decisions whose execute probability lies in one tenth of 0..1.

    ``share`` is their share of all decisions. ``probability`` is their mean probability. ``executed`` is how often the
    block is executed in slightly altered copies of the image.
    """

    share: float
    probability: float
    executed: float


@dataclass(frozen=True)
class ExecutionBenefit:
    """The decisions whose execute probability lies in one tenth of 0..1.

    ``gain`` is the mean decrease of the cross-entropy if the block is executed instead of skipped. The other gates
    decide as usual.
    """

    share: float
    probability: float
    gain: float


def measure_flips(network: SkipNet, runner: Runner, pixels: Pixels) -> tuple[list[FlipRates], list[ReliabilityBin]]:
    """Return the flip rates under each change, and the reliability of the gates under the slight changes."""
    unaltered = runner.run(pixels)
    slight, rates = [], []
    for quality in (95, 85, 75, 50, 30):
        outputs = runner.run(compress_jpeg(pixels, quality))
        rates.append(compare(f"JPEG, quality {quality}", unaltered, outputs))
        if quality >= 75:
            slight.append(outputs)
    step = max(1, pixels.shape[2] // 32)
    for distance in (1, 2, 4):
        moved = [
            runner.run(shift(pixels, across, down))
            for across, down in ((distance * step, 0), (0, distance * step), (-distance * step, -distance * step))
        ]
        pixel_count = "1 pixel" if distance * step == 1 else f"{distance * step} pixels"
        rates.append(average(f"shift by {pixel_count}", [compare("", unaltered, outputs) for outputs in moved]))
        if distance == 1:
            slight += moved
    rates.append(compare("bfloat16", unaltered, run_bfloat16(network, runner, pixels)))
    return rates, measure_reliability(unaltered, slight)


def compare(change: str, before: Outputs, after: Outputs) -> FlipRates:
    """Return the flip rates between two outputs for the same images."""
    flipped = before.executed != after.executed
    return FlipRates(
        change=change,
        decisions=float(flipped.mean()) if flipped.size else 0.0,
        routes=float(flipped.any(1).mean()),
        classes=float((before.predicted != after.predicted).mean()),
        blocks=float((after.blocks - before.blocks).mean()),
    )


def average(change: str, rates: list[FlipRates]) -> FlipRates:
    """Return the mean of several flip rates under one name."""
    decisions, routes, classes, blocks = np.mean(
        [(rate.decisions, rate.routes, rate.classes, rate.blocks) for rate in rates], axis=0
    ).tolist()
    return FlipRates(change, decisions, routes, classes, blocks)


def run_bfloat16(network: SkipNet, runner: Runner, pixels: Pixels) -> Outputs:
    """Return the outputs of the masked network with weights and activations in bfloat16."""
    half = copy.deepcopy(network).to(torch.bfloat16).eval()
    parts = []
    for start in range(0, len(pixels), HALF_BATCH):
        images = torch.from_numpy(normalise(pixels[start : start + HALF_BATCH], runner.spec)).to(torch.bfloat16)
        with torch.inference_mode():
            logits, routing = half(images, decide_at(runner.threshold))
        parts.append((logits.argmax(1).numpy(), (routing.decisions > 0).numpy(), routing.probability.float().numpy()))
    predicted, executed, probability = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Outputs(predicted, executed, probability)


def measure_reliability(unaltered: Outputs, altered: list[Outputs]) -> list[ReliabilityBin]:
    """Return a bin for each tenth of 0..1 that holds execute probabilities."""
    executed = np.mean([outputs.executed for outputs in altered], axis=0)
    return [
        ReliabilityBin(
            *(float(value) for value in (mask.mean(), unaltered.probability[mask].mean(), executed[mask].mean()))
        )
        for mask in tenths(unaltered.probability)
    ]


def measure_execution_benefit(
    network: SkipNet, runner: Runner, pixels: Pixels, labels: NDArray[np.int64]
) -> list[ExecutionBenefit]:
    """Return the benefit of executing a block, by the execute probability of its gate."""
    images = torch.from_numpy(normalise(pixels, runner.spec))
    truth = torch.from_numpy(labels)
    route = decide_at(runner.threshold)

    def cross_entropy(forced: int, value: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        def decide(index: int, logits: torch.Tensor) -> torch.Tensor:
            return torch.full_like(logits, value) if index == forced else route(index, logits)

        with torch.inference_mode():
            logits, routing = network(images, decide)
        losses = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
        return losses.numpy(), routing.probability[:, forced].numpy()

    gains, probabilities = [], []
    for gate in range(network.decision_count):
        skipped, probability = cross_entropy(gate, 0.0)
        executed, _ = cross_entropy(gate, 1.0)
        gains.append(skipped - executed)
        probabilities.append(probability)
    gain, probability = np.stack(gains, 1), np.stack(probabilities, 1)
    return [
        ExecutionBenefit(float(mask.mean()), float(probability[mask].mean()), float(gain[mask].mean()))
        for mask in tenths(probability)
    ]


def tenths(probability: NDArray[np.float32]) -> list[NDArray[np.bool_]]:
    """Return a mask for each tenth of 0..1 that holds probabilities."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    masks = [place == number for number in range(BINS)]
    return [mask for mask in masks if mask.any()]
