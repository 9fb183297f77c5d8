"""The comparison of a fine-tuned network with gates and its dense network: accuracy, MACs and time."""

import math
from dataclasses import dataclass

import numpy as np

from models.benchmark.timing import interleave
from models.checkpoint import CalibrationPoint, Evaluation
from models.data.source import Source
from models.engines.protocol import Engine
from models.preprocessing import InputSpec, prepare

Z = 1.96
"""Standard errors from the centre to each end of a 95 % confidence interval."""
CLOSED = 0.01
"""The execution rate below which a gate is closed."""
LEAST_SAVING = 0.01
TIMED_IMAGES, TIMED_SECONDS = 16, 4.0


@dataclass(frozen=True)
class Comparison:
    """Figures of the dense and the routed network on the same images.

    ``routed`` is the routed network's evaluation. ``lost`` is the dense accuracy less the routed accuracy, in 0..1.
    ``lost_error`` is the standard error of this paired difference. Times are milliseconds of an image at batch size 1.
    ``open_at_half`` is the share of the gated blocks that images execute at threshold 0.5.
    """

    dense_accuracy: float
    routed: Evaluation
    lost: float
    lost_error: float
    dense_ms: float
    routed_ms: float
    open_at_half: float

    @property
    def saved(self) -> float:
        """The share of the dense MACs that routing saves."""
        return 1 - self.routed.macs / self.routed.dense_macs

    def problems(self, max_loss: float) -> list[str]:
        """Return the reasons not to publish the routed network, each with a remedy.

        ``max_loss`` is the largest loss of accuracy, in 0..1.
        """
        found = []
        if self.lost > max_loss:
            found.append(
                f"it loses {100 * self.lost:.1f} points of accuracy to its dense network, and --max-loss allows "
                f"{100 * max_loss:g}. Add training images, train with more --epochs, or allow a larger --max-loss"
            )
        if self.saved < LEAST_SAVING:
            found.append(
                f"it saves nothing: {self.routed.macs / 1e6:.1f} M MACs of {self.routed.dense_macs / 1e6:.1f} M. Train "
                "with more --epochs, or allow a larger --max-loss"
            )
        if found and self.open_at_half < CLOSED:
            found.insert(0, "its gates are closed: at threshold 0.5 they skip every gated block")
        return found

    def describe(self) -> str:
        """Return the figures as a table, with a sentence about whether routing paid."""
        images, macs, dense = self.routed.images, self.routed.macs / 1e6, self.routed.dense_macs / 1e6
        rows = [
            ("dense", self.dense_accuracy, dense, self.dense_ms),
            ("routed", self.routed.accuracy, macs, self.routed_ms),
        ]
        lines = [f"on {images:,} {self.routed.split} images:"]
        for name, accuracy, cost, milliseconds in rows:
            low, high = wilson_interval(accuracy, images)
            lines.append(
                f"  {name:<6} accuracy {accuracy:6.1%} (95 % confidence: {low:.1%} to {high:.1%}), {cost:8.1f} M MACs, "
                f"{milliseconds:6.2f} ms an image"
            )
        return "\n".join([*lines, self.verdict()])

    def verdict(self) -> str:
        """Return a sentence about whether routing paid on this machine."""
        faster = 1 - self.routed_ms / self.dense_ms
        figures = (
            f"{self.saved:.0%} of the MACs and {faster:.0%} of the time saved on this machine, for "
            f"{100 * self.lost:.1f} points of accuracy (standard error {100 * self.lost_error:.1f})"
        )
        return f"Routing {'paid' if self.saved >= LEAST_SAVING and faster > 0 else 'did not pay'}: {figures}."


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share of ``count`` images (Wilson 1927)."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def choose_threshold(curve: list[CalibrationPoint], dense_accuracy: float, max_loss: float) -> float:
    """Return the execute threshold of the cheapest point that loses at most ``max_loss``, or of the first point.

    On few images a point can be good by chance. So the mean of the point and its two neighbours must also keep the
    limit. The curve may rise with the threshold: between the trained thresholds, images take routes that were not
    trained.
    """
    chosen = curve[0]
    for place, point in enumerate(curve):
        around = curve[max(0, place - 1) : place + 2]
        accuracy = min(point.accuracy, sum(each.accuracy for each in around) / len(around))
        if dense_accuracy - accuracy <= max_loss + 1e-9 and point.mac_share < chosen.mac_share:
            chosen = point
    return chosen.threshold


def time_engines(
    dense: Engine, routed: Engine, source: Source, spec: InputSpec, threshold: float
) -> tuple[float, float]:
    """Return the milliseconds of an image in two engines, from interleaved runs of single images."""
    images = [
        prepare(source.image(index, spec.resize)[0], spec)[None]
        for index in np.linspace(0, len(source) - 1, min(TIMED_IMAGES, len(source))).round().astype(int).tolist()
    ]
    thresholds = np.full(1, threshold, np.float32)

    def run(engine: Engine) -> None:
        for image in images:
            engine.run(image, thresholds)

    times = interleave({"dense": lambda: run(dense), "routed": lambda: run(routed)}, TIMED_SECONDS)
    return tuple(1e3 * times[name].median / len(images) for name in ("dense", "routed"))  # type: ignore[return-value]
