"""A shadow: a version or the dense route, which classifies a sample of the images again while the engine is idle.

Responses to clients do not depend on it and do not wait for it. An image that arrives during a run of the shadow waits
for its end.
"""

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.inference.batch import BatchRun
from service.inference.result import ImageResult
from service.repository.loaded_model import LoadedModel, timed
from service.rollout.shares import Share

if TYPE_CHECKING:
    from service.inference.batcher import Batcher
    from service.inference.route import Threshold
    from service.repository.loaded_versions import LoadedVersions
    from service.telemetry.shadow_metrics import ShadowMetrics

log = logging.getLogger("skipnet.shadow")

MAX_WAITING = 16
"""Sampled images that may wait for an idle engine. Those beyond are dropped."""

EVERY_BLOCK = 0.0
"""The threshold at which every block is executed, in a cascade every block of every stage."""


@dataclass(frozen=True)
class Sample:
    """A classified image, its label, and the model and threshold that are compared with it."""

    served: LoadedModel
    label: str
    image: NDArray[np.float32]  # [3, H, W]
    other: LoadedModel
    threshold: "Threshold"
    shadow: str  # as in the metrics


class Shadow:
    """Samples the images of ``shares`` and compares their labels. Use it in the event loop.

    It leaves out images whose request chose a route or was degraded under load, because it compares the usual route.
    """

    def __init__(
        self, shares: Mapping[str, Share], versions: "LoadedVersions", batcher: "Batcher", metrics: "ShadowMetrics"
    ) -> None:
        self.shares = shares
        self.waiting = 0
        self._versions = versions
        self._batcher = batcher
        self._metrics = metrics

    def add_model(self, model: LoadedModel) -> None:
        """Begin the series of a version that is compared with a shadow."""
        share = self.shares.get(model.name)
        if share is not None and share.version != model.version:
            self._metrics.add_model(model, share.label)

    def observe(self, run: BatchRun, results: Sequence[ImageResult]) -> None:
        """Sample the images of a classified batch."""
        model = run.batch.model
        share = self.shares.get(model.name)
        if share is None or share.version == model.version:
            return
        usual = np.asarray(model.threshold, np.float32)
        for image, threshold, result in zip(run.batch.images, run.batch.thresholds, results, strict=True):
            if random.random() < share.share and np.array_equal(threshold, usual):
                self._sample(model, share, image, result)

    def _sample(self, model: LoadedModel, share: Share, image: NDArray[np.float32], result: ImageResult) -> None:
        other = model if share.version is None else self._versions.loaded.get(model.name, {}).get(share.version)
        if self.waiting >= MAX_WAITING or other is None or other.input != model.input:
            self._metrics.count(model, share.label, "dropped")
            return
        self.waiting += 1
        threshold = EVERY_BLOCK if share.version is None else other.threshold
        label = model.labels[int(result.logits.argmax())]
        # A copy, because the image is a part of its batch.
        sample = Sample(model, label, image.copy(), other, threshold, share.label)
        loop = asyncio.get_running_loop()
        self._batcher.when_idle(lambda device: self._run(sample, device, loop))

    def _run(self, sample: Sample, device: int, loop: asyncio.AbstractEventLoop) -> None:
        """Classify a sampled image. It runs in the engine thread, which also closes the model's engine."""
        outcome, seconds = "dropped", 0.0
        if not sample.other.closed:
            try:
                routed, seconds = timed(sample.other.engines[device], sample.image[None], sample.threshold)
                label = sample.other.labels[int(routed.logits[0].argmax())]
                outcome = "agreed" if label == sample.label else "differed"
            except Exception:
                log.exception("the shadow %s of %s failed", sample.shadow, sample.served)
                outcome = "failed"
        loop.call_soon_threadsafe(self._finish, sample, outcome, seconds)

    def _finish(self, sample: Sample, outcome: str, seconds: float) -> None:
        self.waiting -= 1
        self._metrics.count(sample.served, sample.shadow, outcome, seconds)
