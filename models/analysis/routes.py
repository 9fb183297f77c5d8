"""Routes: an engine's answers to many images, and what they have in common."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.analysis.images import Pixels
from models.engines.protocol import Engine
from models.preprocessing import InputSpec, normalise

BATCH = 64


@dataclass(frozen=True)
class Answers:
    """What an engine answered for N images: ``predicted`` [N]; ``executed`` and ``probability`` [N, B-1]."""

    predicted: NDArray[np.int64]
    executed: NDArray[np.bool_]
    probability: NDArray[np.float32]

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Blocks that each image executed [N], the first one counted."""
        return np.asarray(1 + self.executed.sum(1), np.int64)


@dataclass(frozen=True)
class Runner:
    """An engine at one execute threshold, for pixels."""

    engine: Engine
    spec: InputSpec
    threshold: float

    def answer(self, pixels: Pixels) -> Answers:
        """Return the answers for pixels uint8 [N, H, W, 3]."""
        parts = []
        for start in range(0, len(pixels), BATCH):
            images = normalise(pixels[start : start + BATCH], self.spec)
            parts.append(self.engine.run(images, np.full(len(images), self.threshold, np.float32)))
        return Answers(
            np.concatenate([part.logits.argmax(1) for part in parts]),
            np.concatenate([part.executed for part in parts]),
            np.concatenate([part.probability for part in parts]),
        )


def quantiles(values: NDArray[np.int64]) -> tuple[float, float, float, float, float]:
    """Return the 5, 25, 50, 75 and 95 % quantiles; zeros where there are no values."""
    if not len(values):
        return 0.0, 0.0, 0.0, 0.0, 0.0
    least, low, middle, high, most = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
    return least, low, middle, high, most


def path_shares(executed: NDArray[np.bool_]) -> list[float]:
    """Return the share of the images that take each distinct path, largest first."""
    _, counts = np.unique(executed, axis=0, return_counts=True)
    shares: list[float] = (np.sort(counts)[::-1] / len(executed)).tolist()
    return shares


def rank_correlation(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; 0 where either does not vary."""
    a, b = mean_ranks(first), mean_ranks(second)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def mean_ranks(values: NDArray[np.generic]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks
