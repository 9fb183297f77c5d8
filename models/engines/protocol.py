"""Define the interface that every engine implements."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError
from models.macs import Mode


class EngineError(UserError):
    """The engine cannot run as requested."""


@dataclass(frozen=True)
class Routed:
    """An engine's output for a batch of N images.

    ``logits`` are [N, classes]. ``executed`` and ``probability`` are [N, B-1]: column i is block i + 1, since block 0
    always runs. For a plain ResNet, which has no gates, they are all True and all 1. ``mode`` is "branch" if skipped
    blocks were not computed, and "mask" if they were computed and discarded.
    """

    logits: NDArray[np.float32]
    executed: NDArray[np.bool_]
    probability: NDArray[np.float32]
    mode: Mode


class Engine(Protocol):
    """Run one network. Calls must not overlap: one thread calls an engine at a time."""

    name: str
    device: str

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Classify normalised images [N, 3, H, W] with one execute threshold [N] for each image.

        A block is executed if its gate's probability is greater than the threshold (``models.gates``). Raises
        ValueError if N is 0 or if the number of thresholds differs from N.
        """
        ...

    def close(self) -> None:
        """Release threads and memory."""
        ...


@runtime_checkable
class PixelEngine(Engine, Protocol):
    """An engine that normalises images on its device, so that a quarter of the bytes is copied."""

    def run_pixels(self, pixels: NDArray[np.uint8], thresholds: NDArray[np.float32]) -> Routed:
        """Classify decoded images [N, H, W, 3], as ``run`` does after ``models.preprocessing.normalise``."""
        ...


def closed(engine: Engine) -> EngineError:
    """Return the error of an engine on a GPU that is called after it was closed."""
    return EngineError(f"the engine {engine.name} on {engine.device} is closed")


def check_batch(images: NDArray[np.float32] | NDArray[np.uint8], thresholds: NDArray[np.float32]) -> None:
    """Raise ValueError for an empty batch or a wrong number of thresholds: a library may abort on either."""
    count = len(images)
    if count == 0:
        raise ValueError("there is no image in the batch")
    if thresholds.shape != (count,):
        raise ValueError(f"thresholds have the shape {thresholds.shape}, not ({count},): one for each image")


def plain_output(logits: NDArray[np.float32], blocks: int, mode: Mode) -> Routed:
    """Return the output of a plain ResNet, which always executes all of its ``blocks``."""
    shape = len(logits), blocks - 1
    return Routed(logits, np.ones(shape, np.bool_), np.ones(shape, np.float32), mode)
