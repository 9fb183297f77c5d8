"""The confidence of a network in its output, and how well it predicts the network's errors."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Measure = Literal["margin", "maximum", "entropy"]


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return softmax(logits / temperature) along the last axis (Guo et al. 2017)."""
    scaled = logits / np.float32(temperature)
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    shares: NDArray[np.float32] = powers / powers.sum(-1, keepdims=True)
    return shares


def confidence(shares: NDArray[np.float32], measure: Measure = "margin") -> NDArray[np.float32]:
    """Return the confidence [N], 0..1, of class probabilities [N, classes].

    ``margin`` is the difference of the two largest probabilities, and ``maximum`` the largest one. ``entropy`` is 1
    minus the entropy divided by its maximum, the logarithm of the number of classes.
    """
    if measure == "maximum":
        largest: NDArray[np.float32] = shares.max(-1)
        return largest
    if measure == "margin":
        two = np.partition(shares, -2, axis=-1)[:, -2:]
        difference: NDArray[np.float32] = two[:, 1] - two[:, 0]
        return difference
    logs = np.log(np.maximum(shares, np.finfo(np.float32).tiny))
    certainty: NDArray[np.float32] = 1 + (shares * logs).sum(-1) / np.float32(np.log(shares.shape[-1]))
    return certainty


def failure_auroc(confidences: NDArray[np.float32], correct: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve of low confidence as a predictor of errors. 0.5 is chance.

    It is the probability that a wrong output has a lower confidence than a correct one, ties counted half. Raises
    ValueError if all outputs are correct or all are wrong.
    """
    wrong = int((~correct).sum())
    if wrong in (0, len(correct)):
        raise ValueError("an AUROC needs correct and wrong outputs")
    order = np.argsort(confidences, kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    _, inverse, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    mean_ranks = (np.bincount(inverse, ranks) / counts)[inverse]
    right = len(correct) - wrong
    return float((mean_ranks[correct].sum() - right * (right + 1) / 2) / (right * wrong))
