"""Compare the decisions and classes of two engines, such as one in half precision with the reference."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from models.engines.protocol import Engine

LEAST_EQUAL_DECISIONS = 0.995
MOST_ACCURACY_CHANGE = 0.001
MOST_CHANGED_IMAGES = 2


@dataclass(frozen=True)
class Agreement:
    """The shares (0..1) of equal decisions and of equal top-1 labels, and both accuracies.

    ``decisions`` counts every decision of every image. After the first different decision of an image, its later
    decisions may differ as a consequence.
    """

    images: int
    decisions: float
    labels: float
    accuracy: float
    reference_accuracy: float

    @property
    def holds(self) -> bool:
        """Whether 99.5 % of the decisions are equal and the accuracies differ by at most 0.1 points or two images."""
        changed = round(abs(self.accuracy - self.reference_accuracy) * self.images)
        allowed = max(MOST_ACCURACY_CHANGE * self.images, MOST_CHANGED_IMAGES)
        return self.decisions >= LEAST_EQUAL_DECISIONS and changed <= allowed

    def __str__(self) -> str:
        return (
            f"{self.decisions:.3%} of the decisions and {self.labels:.2%} of the labels equal the reference's, top-1 "
            f"{self.accuracy:.2%} against {self.reference_accuracy:.2%}, {self.images} images"
        )


def compare_engines(
    engine: Engine, reference: Engine, batches: Iterable[tuple[Tensor, Tensor]], threshold: float
) -> Agreement:
    """Return the agreement of two engines on batches of images [N, 3, H, W] and labels [N]."""
    equal_decisions: list[float] = []
    equal_labels: list[bool] = []
    right: list[bool] = []
    reference_right: list[bool] = []
    for images, truth in batches:
        thresholds = np.full(len(images), threshold, np.float32)
        output, expected = (each.run(images.numpy(), thresholds) for each in (engine, reference))
        # A network without gates has no decisions.
        same = output.executed == expected.executed
        equal_decisions += same.mean(1).tolist() if same.size else [1.0] * len(images)
        first, expected_first = output.logits.argmax(1), expected.logits.argmax(1)
        equal_labels += (first == expected_first).tolist()
        right += (first == truth.numpy()).tolist()
        reference_right += (expected_first == truth.numpy()).tolist()
    shares = (float(np.mean(column)) for column in (equal_decisions, equal_labels, right, reference_right))
    return Agreement(len(equal_decisions), *shares)
