"""Measuring a network: accuracy, the paper's computation percentage, true MACs, execution rates."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.network import SkipNet


@dataclass(frozen=True)
class Metrics:
    """Accuracy and execution rate per gate in 0..1; the computation percentage is the paper's, in 0..100."""

    images: int
    accuracy: float
    accuracy_per_class: list[float]
    computation_percentage: float
    execution_rate: list[float]
    executed: NDArray[np.bool_]

    @classmethod
    def of(cls, predictions: NDArray[np.int64], labels: NDArray[np.int64], executed: NDArray[np.bool_]) -> "Metrics":
        """Return the metrics of predictions [N] and decisions [N, B-1] against labels [N]."""
        correct = predictions == labels
        return cls(
            images=len(labels),
            accuracy=float(correct.mean()),
            accuracy_per_class=[float(correct[labels == label].mean()) for label in np.unique(labels)],
            computation_percentage=float(100 * (1 + executed.sum(1)).mean() / (1 + executed.shape[1])),
            execution_rate=[float(rate) for rate in executed.mean(0)],
            executed=executed,
        )


def evaluate(
    run: Callable[[Tensor], tuple[NDArray[np.float32], NDArray[np.bool_]]], batches: Iterable[tuple[Tensor, Tensor]]
) -> Metrics:
    """Return the metrics of ``run``, which answers normalised images with class logits and decisions."""
    predictions, labels, executed = [], [], []
    for images, truth in batches:
        logits, decisions = run(images)
        predictions.append(logits.argmax(1))
        labels.append(truth.cpu().numpy())
        executed.append(decisions)
    return Metrics.of(np.concatenate(predictions), np.concatenate(labels), np.concatenate(executed))


def evaluate_network(network: SkipNet, batches: Iterable[tuple[Tensor, Tensor]]) -> Metrics:
    """Return the metrics of a network in its masked form, in evaluation mode; its mode is restored."""
    training = network.training
    network.eval()

    def run(images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        with torch.inference_mode():
            logits, routing = network(images)
        return logits.float().cpu().numpy(), (routing.decisions > 0).cpu().numpy()

    try:
        return evaluate(run, batches)
    finally:
        network.train(training)
