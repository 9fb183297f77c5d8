"""What an engine must answer before it serves: the reference's answers on a few images, within half precision."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.engines.protocol import Engine, EngineError, Routed
from models.engines.torch.reference import ReferenceEngine

IMAGES = 5
"""Not a power of two, so that engines which pad a batch have to."""
TOLERANCE = 0.02
"""Of a probability, and of logits as a share of the image's largest; half precision stays below a tenth of it."""


class Disagreement(EngineError):
    """An engine answers otherwise than the reference."""

    def __init__(self, what: str) -> None:
        super().__init__(f"it answers otherwise than the reference: {what}")


@dataclass(frozen=True)
class Question:
    """Images [N, 3, H, W], their thresholds [N], and what the reference answers."""

    images: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    expected: Routed

    def row(self, index: int) -> "Question":
        """Return the question about one image alone."""
        one = slice(index, index + 1)
        expected = self.expected
        alone = Routed(expected.logits[one], expected.executed[one], expected.probability[one], expected.mode)
        return Question(self.images[one], self.thresholds[one], alone)


class Verification:
    """The questions of one checkpoint, asked on the CPU of the reference when the first engine is checked."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @cached_property
    def questions(self) -> list[Question]:
        """At the checkpoint's own threshold, and with every block and none executed."""
        spec = self.checkpoint.config.input
        images = varied_images(IMAGES, spec.height, spec.width)
        reference = ReferenceEngine(self.checkpoint.network)
        answers = []
        for threshold in (self.checkpoint.config.execute_threshold, 0.0, 1.0):
            thresholds = np.full(IMAGES, threshold, np.float32)
            answers.append(Question(images, thresholds, reference.run(images, thresholds)))
        return answers

    def check(self, engine: Engine) -> None:
        """Ask ``engine`` every question in a batch, and an image of each alone. Raises Disagreement."""
        for question in self.questions:
            compare(engine.run(question.images, question.thresholds), question)
            for index in range(2):
                alone = question.row(index)
                compare(engine.run(alone.images, alone.thresholds), alone)


def compare(answer: Routed, question: Question) -> None:
    """Raise Disagreement where ``answer`` is not the expected one.

    Where a probability lies within ``TOLERANCE`` of its threshold, rounding may decide; from there on an image may
    go another way, and is not compared.
    """
    expected, thresholds = question.expected, question.thresholds[:, None]
    for name in ("logits", "executed", "probability"):
        got, wanted = getattr(answer, name), getattr(expected, name)
        if got.shape != wanted.shape or not np.isfinite(got).all():
            raise Disagreement(f"{name} of shape {got.shape} or not finite, where {wanted.shape} are due")
    open_to_rounding = (np.abs(expected.probability - thresholds) <= TOLERANCE) & (thresholds > 0) & (thresholds < 1)
    undecided = np.logical_or.accumulate(open_to_rounding, 1)
    for image, gate in disputes((answer.executed != expected.executed) & ~undecided):
        raise Disagreement(
            f"image {image} of {len(thresholds)}, gate {gate}: {verb(answer, image, gate)}, where the reference "
            f"{verb(expected, image, gate)} (threshold {float(thresholds[image, 0]):g})"
        )
    # The first undecided gate itself has still seen the same blocks.
    seen = ~np.pad(undecided, ((0, 0), (1, 0)))[:, : undecided.shape[1]]
    for image, gate in disputes((np.abs(answer.probability - expected.probability) > TOLERANCE) & seen):
        raise Disagreement(
            f"image {image} of {len(thresholds)}, gate {gate}: probability {answer.probability[image, gate]:.4f}, "
            f"where the reference has {expected.probability[image, gate]:.4f}"
        )
    error = np.abs(answer.logits - expected.logits).max(1) / np.abs(expected.logits).max(1)
    for image, _ in disputes(((error > TOLERANCE) & ~undecided.any(1))[:, None]):
        raise Disagreement(f"image {image} of {len(thresholds)}: logits {error[image]:.1%} off the reference's")


def disputes(wrong: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield row and column of what is wrong."""
    for row, column in np.argwhere(wrong):
        yield int(row), int(column)


def verb(routed: Routed, image: int, gate: int) -> str:
    action = "executes" if routed.executed[image, gate] else "skips"
    return f"{action} at probability {routed.probability[image, gate]:.4f}"


def varied_images(count: int, height: int, width: int) -> NDArray[np.float32]:
    """Return normalised images [count, 3, H, W] that differ in contrast, brightness and detail: on plain noise,
    gates decide alike.
    """
    random = np.random.default_rng(0)
    coarse = random.normal(size=(count, 3, 4, 4)).repeat(-(-height // 4), 2).repeat(-(-width // 4), 3)
    contrast = np.geomspace(0.2, 2, count)[:, None, None, None]
    brightness = random.normal(size=(count, 3, 1, 1))
    noise = random.normal(size=(count, 3, height, width))
    return (contrast * (coarse[:, :, :height, :width] + 0.5 * noise) + brightness).astype(np.float32)
