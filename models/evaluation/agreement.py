"""How alike two engines decide and classify the same images, one of them in half precision or with rounded weights."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from models.engines.protocol import Engine

LEAST_ALIKE = 0.995
MOST_APART = 0.001


@dataclass(frozen=True)
class Agreement:
    """Shares in 0..1. ``decisions`` is of all decisions of all images: once an image has gone another way, its later
    decisions may differ for that reason alone. ``labels`` is of the images that get the same first label.
    """

    images: int
    decisions: float
    labels: float
    accuracy: float
    reference_accuracy: float

    @property
    def holds(self) -> bool:
        """Whether half precision decides alike: 99.5 % of the decisions, and top-1 accuracy within 0.1 point, or
        within two images where there are few.
        """
        images_apart = round(abs(self.accuracy - self.reference_accuracy) * self.images)
        return self.decisions >= LEAST_ALIKE and images_apart <= max(MOST_APART * self.images, 2)

    def __str__(self) -> str:
        return (
            f"{self.decisions:.3%} of the decisions and {self.labels:.2%} of the labels as in the reference, top-1 "
            f"{self.accuracy:.2%} where it has {self.reference_accuracy:.2%}, {self.images} images"
        )


def compare_engines(
    engine: Engine, reference: Engine, batches: Iterable[tuple[Tensor, Tensor]], threshold: float
) -> Agreement:
    """Return how alike two engines answer batches of images [N, 3, H, W] and their true labels [N]."""
    alike: list[float] = []
    labels: list[bool] = []
    right: list[bool] = []
    reference_right: list[bool] = []
    for images, truth in batches:
        thresholds = np.full(len(images), threshold, np.float32)
        answer, expected = (each.run(images.numpy(), thresholds) for each in (engine, reference))
        # Without gates there is nothing to decide otherwise.
        same = answer.executed == expected.executed
        alike += same.mean(1).tolist() if same.size else [1.0] * len(images)
        first, expected_first = answer.logits.argmax(1), expected.logits.argmax(1)
        labels += (first == expected_first).tolist()
        right += (first == truth.numpy()).tolist()
        reference_right += (expected_first == truth.numpy()).tolist()
    shares = (float(np.mean(column)) for column in (alike, labels, right, reference_right))
    return Agreement(len(alike), *shares)
