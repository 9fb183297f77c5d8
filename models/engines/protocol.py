"""The one interface of everything that runs a network."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.macs import Mode


class EngineError(RuntimeError):
    """No engine can be had as asked; the message says what to do."""


@dataclass(frozen=True)
class Routed:
    """What an engine answers for a batch of N images.

    ``executed`` and ``probability`` are [N, B-1]: column i is block i + 1, since block 0 always runs. A plain
    ResNet has no gates: all True, all 1. ``mode`` says whether skipped blocks were not run ("branch") or were
    run and masked away ("mask").
    """

    logits: NDArray[np.float32]
    executed: NDArray[np.bool_]
    probability: NDArray[np.float32]
    mode: Mode


class Engine(Protocol):
    """Runs one network. One thread calls it at a time."""

    name: str
    device: str

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Classify normalised images [N, 3, H, W], executing a block where probability > threshold [N], strictly.

        Threshold 0 runs every block, 1 none but the first. Raises ValueError where N is 0 or the two are not as many.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...


def check_batch(images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> None:
    """Raise ValueError where there is no image, or not one threshold for each: a library may abort on either."""
    count = len(images)
    if count == 0:
        raise ValueError("there is no image in the batch")
    if thresholds.shape != (count,):
        raise ValueError(f"thresholds have the shape {thresholds.shape}, not ({count},): one for each image")


def strict_thresholds(thresholds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return thresholds [N] to compare with by ``>``, such that 0 runs every block.

    A sigmoid can round to exactly 0 in float32, and 0 > 0 is false, so 0 is moved below every probability.
    """
    return np.where(thresholds <= 0, np.float32(-1), thresholds).astype(np.float32)


def plain_answer(logits: NDArray[np.float32], blocks: int, mode: Mode) -> Routed:
    """Return the answer of a plain ResNet, which runs every one of its blocks for certain."""
    shape = len(logits), blocks - 1
    return Routed(logits, np.ones(shape, np.bool_), np.ones(shape, np.float32), mode)
