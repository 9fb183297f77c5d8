"""Compare an engine with the reference engine on a few images before it serves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.engines.protocol import Engine, EngineError, PixelEngine, Routed
from models.engines.torch.reference import ReferenceEngine
from models.preprocessing import InputSpec, normalisation, normalise

IMAGES = 5
"""The number of images of a case. It is not a power of two, so engines that pad batches must pad this one."""
TOLERANCE = 0.02
"""The allowed error of a probability, and of logits relative to the image's largest. Half precision causes less than
a tenth of it."""
IMAGES_ON_CPU = 2
"""The number for large networks. It is smaller, because their reference takes seconds."""
LARGEST = 1024
"""The largest batch that is compared on a GPU, if it has no more than ``MOST_PIXELS``."""
MOST_PIXELS = 64 * 224 * 224
FEW_THREAD_BLOCKS = (1, 2)


@runtime_checkable
class Queueing(Engine, Protocol):
    """An engine whose thread blocks take images from a queue. A batch of at most ``thread_blocks`` never queues."""

    thread_blocks: int


class Disagreement(EngineError):
    """An engine's output differs from the reference engine's."""

    def __init__(self, what: str) -> None:
        super().__init__(f"its output differs from the reference engine: {what}")


@dataclass(frozen=True)
class Case:
    """Images [N, 3, H, W], their thresholds [N], and the reference engine's output for them."""

    images: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    expected: Routed

    def single(self, index: int) -> "Case":
        """Return the case of one image alone."""
        return self.select(slice(index, index + 1))

    def repeated(self, count: int) -> "Case":
        """Return the case of a batch of ``count`` images, which repeats these."""
        return self.select(np.arange(count) % len(self.images))

    def select(self, which: slice | NDArray[np.intp]) -> "Case":
        expected = self.expected
        chosen = Routed(expected.logits[which], expected.executed[which], expected.probability[which], expected.mode)
        return Case(self.images[which], self.thresholds[which], chosen)


class Verification:
    """The test cases of one checkpoint, of ``images`` each.

    The reference engine computes them on the CPU when they are first needed.
    """

    def __init__(self, checkpoint: Checkpoint, images: int = IMAGES) -> None:
        self.checkpoint, self.images = checkpoint, images

    @cached_property
    def cases(self) -> list[Case]:
        """The cases at the checkpoint's own threshold, with every block executed, and with none."""
        spec = self.checkpoint.config.input
        images = varied_images(self.images, spec.height, spec.width)
        reference = ReferenceEngine(self.checkpoint.network)
        cases = []
        own = self.checkpoint.config.execute_threshold
        # A plain ResNet has no decisions, so one case is enough.
        for threshold in (own, 0.0, 1.0) if self.checkpoint.network.gate_kind else (own,):
            thresholds = np.full(self.images, threshold, np.float32)
            cases.append(Case(images, thresholds, reference.run(images, thresholds)))
        return cases

    def check(self, engine: Engine, sizes: Sequence[int] = ()) -> None:
        """Run every case as a batch, some images of it alone, and the first case in batches of ``sizes``.

        If the reference engine's own output is not finite, the weights are at fault and nothing is compared. Raises
        Disagreement.
        """
        for case in self.cases:
            if not np.isfinite(case.expected.logits).all():
                continue
            compare(engine.run(case.images, case.thresholds), case)
            for index in range(self.images // 2):
                alone = case.single(index)
                compare(engine.run(alone.images, alone.thresholds), alone)
            if isinstance(engine, Queueing):
                check_queue(engine, case)
            if isinstance(engine, PixelEngine):
                check_pixels(engine, case, self.checkpoint.config.input)
            if case is self.cases[0]:
                for size in sizes:
                    many = case.repeated(size)
                    compare(engine.run(many.images, many.thresholds), many)
                    if isinstance(engine, PixelEngine):
                        check_pixels(engine, many, self.checkpoint.config.input)


def recorded_sizes(height: int, width: int) -> list[int]:
    """Return the powers of two up to the largest batch that is compared, for images of ``height`` x ``width``."""
    largest = min(LARGEST, MOST_PIXELS // (height * width))
    return [1 << power for power in range(largest.bit_length())]


def check_queue(engine: Queueing, case: Case) -> None:
    """Check thread blocks that take several images, as in batches larger than the GPU. Raises Disagreement."""
    all_blocks = engine.thread_blocks
    try:
        for engine.thread_blocks in FEW_THREAD_BLOCKS:
            compare(engine.run(case.images, case.thresholds), case)
    finally:
        engine.thread_blocks = all_blocks


def check_pixels(engine: PixelEngine, case: Case, spec: InputSpec) -> None:
    """Compare the engine with itself on the images of a case as pixels. Raises Disagreement."""
    scale, shift = normalisation(spec)
    colours = (np.moveaxis(case.images, 1, 3) + shift) / scale
    pixels = np.clip(np.round(colours), 0, 255).astype(np.uint8)
    images = normalise(pixels, spec)
    expected = engine.run(images, case.thresholds)
    compare(engine.run_pixels(pixels, case.thresholds), Case(images, case.thresholds, expected))


def compare(output: Routed, case: Case) -> None:
    """Raise Disagreement if ``output`` differs from the expected one.

    If a probability is within ``TOLERANCE`` of its threshold, rounding may change the decision, and so the rest of the
    image's route. The rest is not compared.
    """
    expected, thresholds = case.expected, case.thresholds[:, None]
    for name in ("logits", "executed", "probability"):
        actual, wanted = getattr(output, name), getattr(expected, name)
        if actual.shape != wanted.shape or not np.isfinite(actual).all():
            raise Disagreement(f"{name} of shape {actual.shape} or not finite, expected shape {wanted.shape}")
    near_threshold = np.abs(expected.probability - thresholds) <= TOLERANCE
    near_threshold &= (thresholds > 0) & (thresholds < 1)
    undecided = np.logical_or.accumulate(near_threshold, 1)
    for image, gate in positions((output.executed != expected.executed) & ~undecided):
        raise Disagreement(
            f"image {image} of {len(thresholds)}, gate {gate}: {describe_decision(output, image, gate)}, but the "
            f"reference {describe_decision(expected, image, gate)} (threshold {float(thresholds[image, 0]):g})"
        )
    # The first undecided gate still reads the output of the same blocks, so its probability is compared.
    comparable = ~np.pad(undecided, ((0, 0), (1, 0)))[:, : undecided.shape[1]]
    for image, gate in positions((np.abs(output.probability - expected.probability) > TOLERANCE) & comparable):
        raise Disagreement(
            f"image {image} of {len(thresholds)}, gate {gate}: probability {output.probability[image, gate]:.4f}, "
            f"but the reference has {expected.probability[image, gate]:.4f}"
        )
    error = np.abs(output.logits - expected.logits).max(1) / np.abs(expected.logits).max(1)
    for image, _ in positions(((error > TOLERANCE) & ~undecided.any(1))[:, None]):
        raise Disagreement(f"image {image} of {len(thresholds)}: logits differ by {error[image]:.1%}")


def positions(wrong: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield row and column of every True."""
    for row, column in np.argwhere(wrong):
        yield int(row), int(column)


def describe_decision(routed: Routed, image: int, gate: int) -> str:
    """Return for instance "skips at probability 0.4123"."""
    action = "executes" if routed.executed[image, gate] else "skips"
    return f"{action} at probability {routed.probability[image, gate]:.4f}"


def varied_images(count: int, height: int, width: int) -> NDArray[np.float32]:
    """Return normalised images [count, 3, H, W] that differ in contrast, brightness and detail.

    On noise alone, the gates would decide equally for every image.
    """
    random = np.random.default_rng(0)
    coarse = random.normal(size=(count, 3, 4, 4)).repeat(-(-height // 4), 2).repeat(-(-width // 4), 3)
    contrast = np.geomspace(0.2, 2, count)[:, None, None, None]
    brightness = random.normal(size=(count, 3, 1, 1))
    noise = random.normal(size=(count, 3, height, width))
    return (contrast * (coarse[:, :, :height, :width] + 0.5 * noise) + brightness).astype(np.float32)
