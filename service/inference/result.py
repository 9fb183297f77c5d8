"""The result of an image, and the body of the /classify response made from it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.telemetry.timing import Timing

if TYPE_CHECKING:
    from models.engines.protocol import Routed
    from models.macs import Mode


class ModelIdentity(BaseModel):
    name: str
    version: int
    engine: str
    device: str


class Prediction(BaseModel):
    label: str
    index: int
    probability: float


class Decision(BaseModel):
    block: int = Field(description="counted from 0; block 0 always runs and has no gate")
    executed: bool
    probability: float = Field(description="the gate's probability of executing the block")


class StageAnswer(BaseModel):
    """The computation of one stage of a cascade for this image."""

    model: str
    version: int
    blocks: int
    executed: int
    macs: int
    margin: float = Field(
        description="the stage's confidence; below its margin the image is escalated to the next stage"
    )


class RoutingAnswer(BaseModel):
    """The blocks that ran for this image, and their cost."""

    blocks: int = Field(description="residual blocks of the network: executed + skipped")
    executed: int
    skipped: int
    layers_skipped: int = Field(
        description="convolutional layers in the skipped blocks: 2 per basic block, 3 per bottleneck"
    )
    macs: int = Field(description="MACs executed, including stem, projections, gates and head")
    dense_macs: int = Field(description="MACs of the same network without gates")
    saved: float = Field(description="1 - macs / dense_macs; slightly negative if every block ran")
    mode: str = Field(description="branch: skipped blocks were not computed; mask: they were computed and discarded")
    escalated: bool | None = Field(None, description="for a cascade: whether a later stage ran")
    stages: list[StageAnswer] | None = Field(None, description="for a cascade: the stages that the image reached")
    decisions: list[Decision] | None = Field(None, description="one per gate, with explain=true")


class TimingAnswer(BaseModel):
    """Milliseconds."""

    decode: float
    queue: float = Field(description="waiting for a decoding thread and for the engine")
    inference: float = Field(description="the run of this image's batch")
    total: float


class Classification(BaseModel):
    request_id: str
    model: ModelIdentity
    predictions: list[Prediction]
    routing: RoutingAnswer
    timing_ms: TimingAnswer
    expected_accuracy: float | None = Field(
        None,
        description="with compute_budget, or if degraded: top-1 accuracy, 0..1, on the calibration's validation "
        "images; your images may be harder",
    )
    degraded: bool | None = Field(None, description="true if the route was made cheaper because of the load")
    expected_accuracy_loss: float | None = Field(
        None, description="if degraded: expected accuracy of the usual route minus expected_accuracy"
    )


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """The computation of one stage of a cascade for an image that reached it. ``margin`` is its confidence, 0..1."""

    model: str
    version: int
    blocks: int
    executed: int
    macs: int
    margin: float


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The engine's result for one image of a batch.

    ``logits``, ``executed`` and ``probability`` are one row of `Routed`'s arrays. ``probabilities`` are those of the
    classes. ``blocks`` and ``executed_blocks`` include the first block. For a cascade they count the blocks of the
    stages that the image reached, which ``stages`` lists.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    executed: NDArray[np.bool_]
    probability: NDArray[np.float32]
    macs: int
    mode: "Mode"
    blocks: int
    executed_blocks: int
    layers_skipped: int
    stages: tuple[StageOutcome, ...] = ()

    @property
    def skipped(self) -> int:
        return self.blocks - self.executed_blocks


def split(routed: "Routed", macs: NDArray[np.int64], layers_per_block: int) -> list[ImageResult]:
    """Return the results of a batch's images. ``macs`` [N] are the MACs of each image."""
    probabilities = softmax(routed.logits)
    blocks = 1 + routed.executed.shape[1]
    executed = 1 + routed.executed.sum(1)
    return [
        ImageResult(
            logits=routed.logits[i],
            probabilities=probabilities[i],
            executed=routed.executed[i],
            probability=routed.probability[i],
            macs=cost,
            mode=routed.mode,
            blocks=blocks,
            executed_blocks=count,
            layers_skipped=(blocks - count) * layers_per_block,
        )
        for i, (cost, count) in enumerate(zip(macs.tolist(), executed.tolist(), strict=True))
    ]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the softmax along the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: NDArray[np.float32] = powers / powers.sum(-1, keepdims=True)
    return shares


def predictions(probabilities: NDArray[np.float32], labels: list[str], top_k: int) -> list[Prediction]:
    """Return the ``top_k`` most probable classes, most probable first. Equal ones are in the order of the classes."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    ranked = zip(order.tolist(), probabilities[order].tolist(), strict=True)
    return [Prediction(label=labels[i], index=i, probability=round(value, 6)) for i, value in ranked]


def routing(result: ImageResult, dense_macs: int, explain: bool) -> RoutingAnswer:
    """Return the blocks that ran and their cost. With ``explain``, also return each gate's decision."""
    stages = [
        StageAnswer(
            model=stage.model,
            version=stage.version,
            blocks=stage.blocks,
            executed=stage.executed,
            macs=stage.macs,
            margin=round(stage.margin, 6),
        )
        for stage in result.stages
    ]
    return RoutingAnswer(
        blocks=result.blocks,
        executed=result.executed_blocks,
        skipped=result.skipped,
        layers_skipped=result.layers_skipped,
        macs=result.macs,
        dense_macs=dense_macs,
        saved=round(1 - result.macs / dense_macs, 6),
        mode=result.mode,
        escalated=len(stages) > 1 if stages else None,
        stages=stages or None,
        decisions=decisions(result) if explain else None,
    )


def decisions(result: ImageResult) -> list[Decision]:
    """Return the gates' decisions. Column i of the engine's arrays decides about block i + 1."""
    # The last columns belong to stages of a cascade that the image did not reach.
    reached = result.blocks - 1
    columns = zip(result.executed[:reached].tolist(), result.probability[:reached].tolist(), strict=True)
    return [
        Decision(block=block, executed=executed, probability=round(probability, 6))
        for block, (executed, probability) in enumerate(columns, start=1)
    ]


def timing_answer(timing: Timing) -> TimingAnswer:
    """Return a request's timing in milliseconds."""
    return TimingAnswer(
        decode=round(timing.decode * 1e3, 3),
        queue=round(timing.queue * 1e3, 3),
        inference=round(timing.inference * 1e3, 3),
        total=round(timing.total * 1e3, 3),
    )
