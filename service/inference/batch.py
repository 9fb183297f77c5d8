"""A batch of images, its run, and the thread that runs it."""

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.inference.image_task import ImageTask

if TYPE_CHECKING:
    from models.engines.protocol import Routed
    from service.repository.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one version of one model that run together, each with its own threshold."""

    model: "LoadedModel"
    tasks: list[ImageTask]
    images: NDArray[np.float32]  # [N, 3, H, W]
    thresholds: NDArray[np.float32]  # [N], or of a cascade [N, 2S-1]

    def select(self, indices: list[int]) -> "Batch":
        """Return a batch of some of the images."""
        return Batch(self.model, [self.tasks[i] for i in indices], self.images[indices], self.thresholds[indices])


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A batch that ran, and what the engine returned for it."""

    batch: Batch
    routed: "Routed"
    started: float  # in seconds of perf_counter()
    seconds: float
    dense_seconds: float  # of a dense run before this one, which sampled the dense clock; 0 if there was none


@dataclass(eq=False, slots=True)
class Lane:
    """The thread of one device. It runs engine ``index`` of every model, one batch at a time."""

    index: int
    thread: threading.Thread = field(init=False)
    running: Batch | None = None
    busy_since: float | None = None
    retired: list["LoadedModel"] = field(default_factory=list)  # models whose engine it must close
