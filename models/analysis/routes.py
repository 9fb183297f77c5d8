"""Run an engine on many images and summarise the routes that they take."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.analysis.sample import BATCH, Pixels
from models.engines.protocol import Engine
from models.errors import needs_extra
from models.preprocessing import InputSpec, normalise

Quantiles = tuple[float, float, float, float, float]
"""The 5, 25, 50, 75 and 95 % quantiles."""


@dataclass(frozen=True)
class Outputs:
    """The outputs for N images: class ``predicted`` [N], gate decisions ``executed`` [N, B-1] and gate ``probability``
    [N, B-1], with B blocks of which the first has no gate.
    """

    predicted: NDArray[np.int64]
    executed: NDArray[np.bool_]
    probability: NDArray[np.float32]

    @property
    def blocks(self) -> NDArray[np.int64]:
        """The number of blocks that each image executes [N], including the first one."""
        return np.asarray(1 + self.executed.sum(1), np.int64)


@dataclass(frozen=True)
class Runner:
    """An engine at a fixed execute threshold, and the preprocessing of its network."""

    engine: Engine
    spec: InputSpec
    threshold: float

    def run(self, pixels: Pixels) -> Outputs:
        """Return the outputs for pixels uint8 [N, H, W, 3]."""
        parts = []
        for start in range(0, len(pixels), BATCH):
            images = normalise(pixels[start : start + BATCH], self.spec)
            parts.append(self.engine.run(images, np.full(len(images), self.threshold, np.float32)))
        return Outputs(
            np.concatenate([part.logits.argmax(1) for part in parts]),
            np.concatenate([part.executed for part in parts]),
            np.concatenate([part.probability for part in parts]),
        )


def quantiles(values: NDArray[np.int64]) -> Quantiles:
    """Return the 5, 25, 50, 75 and 95 % quantiles, or zeros if there are no values."""
    if not len(values):
        return 0.0, 0.0, 0.0, 0.0, 0.0
    lowest, low, median, high, highest = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
    return lowest, low, median, high, highest


def path_shares(executed: NDArray[np.bool_]) -> list[float]:
    """Return the share of images that take each distinct path, in descending order."""
    _, counts = np.unique(executed, axis=0, return_counts=True)
    shares: list[float] = (np.sort(counts)[::-1] / len(executed)).tolist()
    return shares


def rank_correlation(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    """Return Spearman's rank correlation, or 0 if one variable is constant."""
    with needs_extra("analysis", "rank correlation"):
        from scipy.stats import spearmanr
    if len(np.unique(first)) < 2 or len(np.unique(second)) < 2:
        return 0.0
    return float(spearmanr(first, second).statistic)
