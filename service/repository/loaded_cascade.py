"""A confidence cascade in memory: several networks that are served as one model."""

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from service.errors import Code, ServiceError
from service.inference.result import ImageResult, StageOutcome, softmax
from service.inference.route import OperatingPoint, RouteChoice, Threshold
from service.repository.loaded_model import LoadedModel

if TYPE_CHECKING:
    from models.cascade.config import Cascade
    from models.cascade.engine import CascadeEngine, CascadeRouted
    from models.engines.protocol import Routed


@dataclass(eq=False)
class LoadedCascade(LoadedModel):
    """One version of a cascade, loaded and warm.

    Blocks are those of all stages, one after the other. "Saved" is measured against the last stage's dense network.
    """

    checkpoint: "Cascade"  # type: ignore[assignment]
    engine: "CascadeEngine"

    @property
    def architecture(self) -> str:
        return " -> ".join(stage.config.architecture for stage in self.checkpoint.stages)

    @property
    def threshold(self) -> Threshold:
        return self.checkpoint.thresholds

    @property
    def escalation_rates(self) -> tuple[float, ...]:
        """The share of the evaluated images that reached each later stage. It is empty if it is not known."""
        evaluation = self.checkpoint.config.evaluation
        return () if evaluation is None else evaluation.escalated

    @property
    def execution_rates(self) -> list[float]:
        return []

    @property
    def curve(self) -> list[tuple[float, float]]:
        return [(point.mac_share, point.accuracy) for point in self.checkpoint.config.curve]

    @property
    def operating_points(self) -> list[OperatingPoint]:
        return [
            OperatingPoint((*point.thresholds, *point.margins), point.mac_share, point.accuracy)
            for point in self.checkpoint.config.curve
        ]

    @property
    def usual_point(self) -> OperatingPoint | None:
        share, curve = self.expected_mac_share, self.curve
        if share is None or not curve:
            return None
        # The curve's images are not those of the evaluation, so its accuracy is compared with others of the curve.
        shares, accuracies = zip(*curve, strict=True)
        return OperatingPoint(self.threshold, share, float(np.interp(share, shares, accuracies)))

    @property
    def gated(self) -> bool:
        return all(stage.macs.gates for stage in self.checkpoint.stages)

    @property
    def blocks(self) -> int:
        return sum(len(stage.macs.blocks) for stage in self.checkpoint.stages)

    @property
    def dense_macs(self) -> int:
        return self.checkpoint.dense_macs

    @property
    def sample_macs(self) -> int:
        return self.checkpoint.stages[-1].macs.full

    def stage_macs(self, routed: "Routed") -> list[NDArray[np.int64]]:
        """Return the MACs of each stage that ran for each image of a batch [N]."""
        from models.cascade.engine import executed_macs

        return executed_macs(self.checkpoint, cast("CascadeRouted", routed))

    def executed_macs(self, routed: "Routed") -> NDArray[np.int64]:
        total: NDArray[np.int64] = np.sum(self.stage_macs(routed), axis=0)
        return total

    def results(self, routed: "Routed", macs: NDArray[np.int64]) -> list[ImageResult]:
        cascade = cast("CascadeRouted", routed)
        outcomes = self.outcomes(cascade)
        probabilities = softmax(routed.logits)
        layers = [stage.network.layers_per_block for stage in self.checkpoint.stages]
        return [
            ImageResult(
                logits=routed.logits[i],
                probabilities=probabilities[i],
                executed=routed.executed[i],
                probability=routed.probability[i],
                macs=cost,
                mode=routed.mode,
                blocks=sum(stage.blocks for stage in stages),
                executed_blocks=sum(stage.executed for stage in stages),
                layers_skipped=sum(
                    (stage.blocks - stage.executed) * count for stage, count in zip(stages, layers, strict=False)
                ),
                stages=tuple(stages),
            )
            for i, (cost, stages) in enumerate(zip(macs.tolist(), outcomes, strict=True))
        ]

    def outcomes(self, routed: "CascadeRouted") -> list[list[StageOutcome]]:
        """Return the results of the stages that each image of a batch reached."""
        outcomes: list[list[StageOutcome]] = [[] for _ in routed.logits]
        parts = zip(
            self.checkpoint.config.stages, self.checkpoint.stages, routed.stages, self.stage_macs(routed), strict=False
        )
        for stage, checkpoint, result, macs in parts:
            executed = 1 + result.routed.executed.sum(1)
            for row, image in enumerate(result.images.tolist()):
                outcomes[image].append(
                    StageOutcome(
                        model=stage.model,
                        version=stage.version,
                        blocks=len(checkpoint.macs.blocks),
                        executed=int(executed[row]),
                        macs=int(macs[image]),
                        margin=float(result.confidences[row]),
                    )
                )
        return outcomes

    def images_per_block(self, routed: "Routed") -> NDArray[np.int64]:
        stages = cast("CascadeRouted", routed).stages
        counts = [len(stage.images) for stage in stages] + [0] * (len(self.checkpoint.stages) - len(stages))
        return np.repeat(counts, [len(stage.macs.blocks) for stage in self.checkpoint.stages])

    def choose_route(
        self, execute_threshold: float | None, compute_budget: float | None, min_margin: float | None
    ) -> RouteChoice:
        """Return the thresholds and margins of a request.

        ``execute_threshold`` replaces that of every stage and ``min_margin`` every margin. ``compute_budget`` selects
        the most accurate point of the curve within it. Raises ServiceError invalid_parameter.
        """
        count = len(self.checkpoint.stages)
        if compute_budget is not None:
            if execute_threshold is not None or min_margin is not None:
                wrong = "send compute_budget, or execute_threshold and min_margin, not both"
                raise ServiceError(Code.INVALID_PARAMETER, wrong)
            return self.route_within(compute_budget)
        thresholds, margins = self.checkpoint.thresholds[:count], self.checkpoint.thresholds[count:]
        if execute_threshold is not None:
            thresholds = (execute_threshold,) * count
        if min_margin is not None:
            margins = (min_margin,) * (count - 1)
        return RouteChoice((*thresholds, *margins))

    def route_within(self, budget: float) -> RouteChoice:
        """Return the most accurate point of the curve that takes at most ``budget`` of the dense MACs."""
        curve = self.checkpoint.config.curve
        within = [point for point in curve if point.mac_share <= budget]
        if not within:
            least = f"; the least is {curve[0].mac_share:.4f}" if curve else ": this cascade has no curve"
            raise ServiceError(Code.INVALID_PARAMETER, f"compute_budget {budget:g} cannot be met{least}")
        point = within[-1]
        return RouteChoice((*point.thresholds, *point.margins), point.accuracy)

    def run_dense(self, images: NDArray[np.float32], device: int = 0) -> float:
        """Run every block of the last stage alone for ``images`` [N, 3, H, W] and return the seconds."""
        start = perf_counter()
        cast("CascadeEngine", self.engines[device]).run_dense(images)
        return perf_counter() - start
