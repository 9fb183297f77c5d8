"""One version of a model in memory: its checkpoint, its engine and the time a dense batch takes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.errors import Code, ServiceError
from service.inference.budget import choose_threshold, expected_accuracy, expected_mac_share
from service.inference.dense_clock import DenseClock
from service.inference.result import ImageResult, split
from service.inference.route import OperatingPoint, RouteChoice, Threshold

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.engines.protocol import Engine, Routed
    from models.macs import Mode
    from models.preprocessing import InputSpec


@dataclass(eq=False)
class LoadedModel:
    """One version of a model, loaded and warmed up. `LoadedCascade` has several networks."""

    checkpoint: "Checkpoint"
    engine: "Engine"
    mode: "Mode"  # of the last batch
    clock: DenseClock
    others: tuple["Engine", ...] = ()  # engines of the other devices; `engine` is that of the first
    fallbacks: list[str] = field(default_factory=list)  # engines that auto could not use; the log says why
    leases: int = field(default=0, init=False)  # requests that use it
    retired: bool = field(default=False, init=False)  # no new request gets it
    closed: bool = field(default=False, init=False)  # its engine is closed, or about to be

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def version(self) -> int:
        return self.checkpoint.version

    @property
    def engines(self) -> "tuple[Engine, ...]":
        """One engine for each device."""
        return self.engine, *self.others

    @property
    def device(self) -> str:
        """The devices of the engines, with commas between them."""
        return ",".join(engine.device for engine in self.engines)

    @property
    def labels(self) -> list[str]:
        return self.checkpoint.config.labels

    @property
    def input(self) -> "InputSpec":
        return self.checkpoint.config.input

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an input."""
        return 3, self.input.height, self.input.width

    @property
    def architecture(self) -> str:
        return self.checkpoint.config.architecture

    @property
    def threshold(self) -> Threshold:
        """The threshold of requests that set none."""
        return self.checkpoint.config.execute_threshold

    @property
    def accuracy(self) -> float | None:
        """The top-1 accuracy, 0..1, in the checkpoint's evaluation."""
        evaluation = self.checkpoint.config.evaluation
        return None if evaluation is None else evaluation.accuracy

    @property
    def expected_mac_share(self) -> float | None:
        """Executed MACs / dense MACs in the checkpoint's evaluation."""
        evaluation = self.checkpoint.config.evaluation
        return None if evaluation is None else evaluation.macs / evaluation.dense_macs

    @property
    def execution_rates(self) -> list[float]:
        """The share of the evaluated images that executed each block except the first.

        It is empty if it is not known.
        """
        evaluation = self.checkpoint.config.evaluation
        return [] if evaluation is None else evaluation.execution_rate

    @property
    def curve(self) -> list[tuple[float, float]]:
        """The accuracy-compute curve as rising MAC shares and accuracies. It is empty if it was not measured."""
        points = [(point.mac_share, point.accuracy) for point in self.checkpoint.config.calibration]
        return upper_envelope(points)

    @property
    def operating_points(self) -> list[OperatingPoint]:
        """The points of the accuracy-compute curve. There are none if it was not measured."""
        return [
            OperatingPoint(point.threshold, point.mac_share, point.accuracy)
            for point in self.checkpoint.config.calibration
        ]

    @property
    def usual_point(self) -> OperatingPoint | None:
        """The point of the curve for requests that set no route, or None if it is not known."""
        config = self.checkpoint.config
        if not config.calibration:
            return None
        threshold = config.execute_threshold
        cost = expected_mac_share(config.calibration, threshold)
        return OperatingPoint(threshold, cost, expected_accuracy(config.calibration, threshold))

    @property
    def gated(self) -> bool:
        """Return whether gates decide which blocks run."""
        return bool(self.checkpoint.macs.gates)

    @property
    def blocks(self) -> int:
        """Blocks of the network."""
        return len(self.checkpoint.macs.blocks)

    @property
    def dense_macs(self) -> int:
        """MACs of the network without gates, the reference of "saved"."""
        return self.checkpoint.macs.dense

    @property
    def sample_macs(self) -> int:
        """MACs of an image in `run_dense`."""
        return self.checkpoint.macs.full

    def executed_macs(self, routed: "Routed") -> NDArray[np.int64]:
        """Return the MACs of each image of a batch [N]."""
        return self.checkpoint.macs.executed(routed.executed, routed.mode)

    def results(self, routed: "Routed", macs: NDArray[np.int64]) -> list[ImageResult]:
        """Return the results of a batch's images. ``macs`` [N] are the MACs of each image."""
        return split(routed, macs, self.checkpoint.network.layers_per_block)

    def images_per_block(self, routed: "Routed") -> NDArray[np.int64]:
        """Return how many images of a batch reached each block [B], and executed or skipped it."""
        return np.full(self.blocks, len(routed.logits), np.int64)

    def choose_route(
        self, execute_threshold: float | None, compute_budget: float | None, min_margin: float | None
    ) -> RouteChoice:
        """Return the route of a request.

        Raises ServiceError invalid_parameter.
        """
        if min_margin is not None:
            raise ServiceError(Code.INVALID_PARAMETER, f"{self.name} is not a cascade: min_margin cannot be set")
        config = self.checkpoint.config
        threshold = choose_threshold(config, execute_threshold, compute_budget)
        expected = None if compute_budget is None else expected_accuracy(config.calibration, threshold)
        return RouteChoice(threshold, expected)

    def engine_in(self, mode: "Mode") -> str:
        """Return the name of the engine that runs a batch in ``mode``. A switch has two engines."""
        from models.engines.routing_switch import engine_in

        return engine_in(self.engine, mode).name

    def probe(self, device: int = 0) -> None:
        """Run a blank image on the engine of a device.

        Raises what the engine raises.
        """
        self.run_dense(np.zeros((1, *self.shape), np.float32), device)

    def run_dense(self, images: NDArray[np.float32], device: int = 0) -> float:
        """Run every block for ``images`` [N, 3, H, W] on the engine of a device, and return the seconds."""
        return timed(self.engines[device], images, 0.0)[1]

    def close(self) -> None:
        """Close every engine."""
        for engine in self.engines:
            engine.close()

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


def upper_envelope(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points of MAC share and accuracy that are more accurate than every cheaper one."""
    envelope: list[tuple[float, float]] = []
    for share, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not envelope or accuracy > envelope[-1][1]:
            envelope.append((share, accuracy))
    return envelope


def timed(engine: "Engine", images: NDArray[np.float32], threshold: Threshold) -> "tuple[Routed, float]":
    """Run images outside of the traffic. A switch between branching and masking does not record them."""
    from models.engines.routing_switch import run_untracked

    start = perf_counter()
    routed = run_untracked(engine, images, np.asarray([threshold] * len(images), np.float32))
    return routed, perf_counter() - start
