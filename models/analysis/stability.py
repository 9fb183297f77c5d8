"""Do gates mean what they say? Flips where an image hardly changes, and what probabilities are worth."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.analysis.images import Pixels, compress, shift
from models.analysis.routes import Answers, Runner
from models.network import SkipNet, decide_at
from models.preprocessing import normalise

BINS = 10
HALF_BATCH = 50


@dataclass(frozen=True)
class Flips:
    """Shares in 0..1: of decisions that differ from the unaltered image's, of images whose route does, and whose class
    does; ``blocks`` is the mean number of blocks executed more.
    """

    change: str
    decisions: float
    routes: float
    classes: float
    blocks: float


@dataclass(frozen=True)
class Reliability:
    """Decisions whose probability lies in one tenth: their share of all, the mean probability, and how often the same
    block is executed in a mildly altered copy of the image.
    """

    share: float
    probability: float
    executed: float


@dataclass(frozen=True)
class Worth:
    """Decisions whose probability lies in one tenth: their share of all, and by how much an image's cross-entropy is
    lower with the block executed than with it skipped, all other gates deciding for themselves.
    """

    share: float
    probability: float
    gain: float


def measure_flips(network: SkipNet, runner: Runner, pixels: Pixels) -> tuple[list[Flips], list[Reliability]]:
    """Return the flips under each alteration, and the gates' reliability over the mild ones."""
    plain = runner.answer(pixels)
    mild, rows = [], []
    for quality in (95, 85, 75, 50, 30):
        answers = runner.answer(compress(pixels, quality))
        rows.append(compare(f"JPEG, quality {quality}", plain, answers))
        if quality >= 75:
            mild.append(answers)
    step = max(1, pixels.shape[2] // 32)
    for distance in (1, 2, 4):
        moved = [
            runner.answer(shift(pixels, across, down))
            for across, down in ((distance * step, 0), (0, distance * step), (-distance * step, -distance * step))
        ]
        one = "1 pixel" if distance * step == 1 else f"{distance * step} pixels"
        rows.append(average(f"shift by {one}", [compare("", plain, answers) for answers in moved]))
        if distance == 1:
            mild += moved
    rows.append(compare("bfloat16", plain, half_precision(network, runner, pixels)))
    return rows, reliability(plain, mild)


def compare(change: str, before: Answers, after: Answers) -> Flips:
    flipped = before.executed != after.executed
    return Flips(
        change=change,
        decisions=float(flipped.mean()) if flipped.size else 0.0,
        routes=float(flipped.any(1).mean()),
        classes=float((before.predicted != after.predicted).mean()),
        blocks=float((after.blocks - before.blocks).mean()),
    )


def average(change: str, rows: list[Flips]) -> Flips:
    decisions, routes, classes, blocks = np.mean(
        [(row.decisions, row.routes, row.classes, row.blocks) for row in rows], axis=0
    ).tolist()
    return Flips(change, decisions, routes, classes, blocks)


def half_precision(network: SkipNet, runner: Runner, pixels: Pixels) -> Answers:
    """Return the answers of the network with weights and activations in bfloat16, masked."""
    half = copy.deepcopy(network).to(torch.bfloat16).eval()
    parts = []
    for start in range(0, len(pixels), HALF_BATCH):
        images = torch.from_numpy(normalise(pixels[start : start + HALF_BATCH], runner.spec)).to(torch.bfloat16)
        with torch.inference_mode():
            logits, routing = half(images, decide_at(runner.threshold))
        parts.append((logits.argmax(1).numpy(), (routing.decisions > 0).numpy(), routing.probability.float().numpy()))
    predicted, executed, probability = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Answers(predicted, executed, probability)


def reliability(plain: Answers, altered: list[Answers]) -> list[Reliability]:
    """Return a row for each tenth of probability that some decision lies in."""
    executed = np.mean([answers.executed for answers in altered], axis=0)
    return [
        Reliability(*(float(value) for value in (mask.mean(), plain.probability[mask].mean(), executed[mask].mean())))
        for mask in tenths(plain.probability)
    ]


def measure_worth(network: SkipNet, runner: Runner, pixels: Pixels, labels: NDArray[np.int64]) -> list[Worth]:
    """Return what executing a block is worth, by the probability that its gate gave it."""
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
        Worth(float(mask.mean()), float(probability[mask].mean()), float(gain[mask].mean()))
        for mask in tenths(probability)
    ]


def tenths(probability: NDArray[np.float32]) -> list[NDArray[np.bool_]]:
    """Return a mask for each tenth of 0..1 that holds any probability."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    masks = [place == number for number in range(BINS)]
    return [mask for mask in masks if mask.any()]
