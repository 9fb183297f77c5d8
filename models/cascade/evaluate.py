"""Measure a cascade and its stages on a split."""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from models.cascade.config import Cascade, CascadeEvaluation
from models.cascade.engine import CascadeEngine, executed_macs
from models.cascade.fit import StageOutputs
from models.checkpoint import Checkpoint
from models.data.source import Source
from models.engines.protocol import Engine
from models.evaluation.metrics import prepared_batches


def collect_outputs(
    checkpoint: Checkpoint, engine: Engine, batches: Iterable[tuple[Tensor, Tensor]], thresholds: Sequence[float]
) -> list[StageOutputs]:
    """Return a stage's outputs at each execute threshold for the normalised images [N, 3, H, W] of all batches."""
    kept = list(batches)
    outputs = []
    for threshold in thresholds:
        routed = [engine.run(images.numpy(), np.full(len(images), threshold, np.float32)) for images, _ in kept]
        outputs.append(
            StageOutputs(
                threshold,
                np.concatenate([each.logits for each in routed]),
                np.concatenate([checkpoint.macs.executed(each.executed) for each in routed]),
            )
        )
    return outputs


def measure_cascade(cascade: Cascade, engine: CascadeEngine, source: Source, split: str) -> CascadeEvaluation:
    """Measure a cascade on a split at its own thresholds and margins."""
    correct, macs, labels, reached = [], [], [], []
    for images, truth in prepared_batches(source, cascade.config.input):
        routed = engine.run(images.numpy(), np.tile(np.asarray(cascade.thresholds, np.float32), (len(images), 1)))
        correct.append(routed.logits.argmax(1) == truth.numpy())
        labels.append(truth.numpy())
        macs.append(np.sum(executed_macs(cascade, routed, "branch"), axis=0))
        counts = [len(stage.images) for stage in routed.stages]
        reached.append(counts + [0] * (len(cascade.stages) - len(counts)))
    right, truths, total = np.concatenate(correct), np.concatenate(labels), np.sum(reached, axis=0)
    return CascadeEvaluation(
        dataset=source.dataset.name,
        split=split,
        images=len(right),
        engine=engine.name,
        accuracy=float(right.mean()),
        macs=float(np.concatenate(macs).mean()),
        dense_macs=cascade.dense_macs,
        escalated=tuple((total[1:] / len(right)).tolist()),
        accuracy_per_class={
            label: float(right[truths == index].mean())
            for index, label in enumerate(cascade.config.labels)
            if (truths == index).any()
        },
    )
