"""Measure the accuracy and the computation of a network."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from models.checkpoint import Checkpoint, Evaluation
from models.data.batches import PreparedImages
from models.data.source import Source
from models.engines.protocol import Engine
from models.network import SkipNet
from models.preprocessing import InputSpec

BATCH = 250


@dataclass(frozen=True)
class Metrics:
    """The metrics of a network on a data set.

    Accuracies and execution rates (one per gate) are in 0..1. A class without images has no accuracy. The computation
    percentage (0..100) is the paper's: the share of executed blocks. ``executed`` is [N, B-1].
    """

    images: int
    accuracy: float
    accuracy_per_class: list[float | None]
    computation_percentage: float
    execution_rate: list[float]
    executed: NDArray[np.bool_]

    @classmethod
    def of(cls, logits: NDArray[np.float32], labels: NDArray[np.int64], executed: NDArray[np.bool_]) -> "Metrics":
        """Return the metrics of class logits [N, classes] and decisions [N, B-1] against labels [N]."""
        correct = logits.argmax(1) == labels
        classes = logits.shape[1]
        return cls(
            images=len(labels),
            accuracy=float(correct.mean()),
            accuracy_per_class=[
                float(correct[labels == label].mean()) if (labels == label).any() else None for label in range(classes)
            ],
            computation_percentage=float(100 * (1 + executed.sum(1)).mean() / (1 + executed.shape[1])),
            execution_rate=[float(rate) for rate in executed.mean(0)],
            executed=executed,
        )


Run = Callable[[Tensor], tuple[NDArray[np.float32], NDArray[np.bool_]]]
"""Return class logits [N, classes] and decisions [N, B-1] for normalised images [N, 3, H, W]."""


def collect(
    run: Run, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Return class logits [N, classes], labels [N] and decisions [N, B-1] of all batches."""
    logits, labels, executed = [], [], []
    for images, truth in batches:
        output, decisions = run(images)
        logits.append(output)
        labels.append(truth.cpu().numpy())
        executed.append(decisions)
    return np.concatenate(logits), np.concatenate(labels), np.concatenate(executed)


def evaluate_network(
    network: SkipNet,
    batches: Iterable[tuple[Tensor, Tensor]],
    join_rows: Callable[[NDArray[Any]], NDArray[Any]] = lambda rows: rows,
) -> Metrics:
    """Return the metrics of the masked network in evaluation mode. Its mode is restored.

    ``join_rows`` adds the rows of other processes, which evaluate other images.
    """

    def run(images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        with torch.inference_mode():
            logits, routing = network(images)
        return logits.float().cpu().numpy(), (routing.decisions > 0).cpu().numpy()

    with network.evaluating():
        logits, labels, executed = collect(run, batches)
    return Metrics.of(join_rows(logits), join_rows(labels), join_rows(executed))


def evaluate_engine(engine: Engine, batches: Iterable[tuple[Tensor, Tensor]], threshold: float) -> Metrics:
    """Return the metrics of an engine at one execute threshold."""
    return Metrics.of(*collect(run_engine(engine, threshold), batches))


def run_engine(engine: Engine, threshold: float) -> Run:
    """Return a function that runs an engine at one execute threshold."""

    def run(images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        routed = engine.run(images.numpy(), np.full(len(images), threshold, np.float32))
        return routed.logits, routed.executed

    return run


def measure(checkpoint: Checkpoint, engine: Engine, source: Source, split: str, threshold: float) -> Evaluation:
    """Return the evaluation of a checkpoint on a split, with images prepared as in the service."""
    metrics = evaluate_engine(engine, prepared_batches(source, checkpoint.config.input), threshold)
    return Evaluation(
        dataset=source.dataset.name,
        split=split,
        images=metrics.images,
        engine=engine.name,
        execute_threshold=threshold,
        accuracy=metrics.accuracy,
        computation_percentage=metrics.computation_percentage,
        macs=float(checkpoint.macs.executed(metrics.executed).mean()),
        dense_macs=checkpoint.macs.dense,
        decisions_skipped=1 - float(metrics.executed.mean()) if metrics.executed.size else 0.0,
        execution_rate=metrics.execution_rate,
        accuracy_per_class={
            label: accuracy
            for label, accuracy in zip(checkpoint.config.labels, metrics.accuracy_per_class, strict=True)
            if accuracy is not None
        },
    )


def prepared_batches(source: Source, spec: InputSpec) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield network inputs, prepared as in the service, and labels, in the order of the source."""
    return DataLoader(PreparedImages(source, spec), BATCH)
