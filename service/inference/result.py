"""What a classification answers, and how it is made from what an engine says of one image."""

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
    probability: float = Field(description="the gate's, of executing the block")


class StageAnswer(BaseModel):
    """What one stage of a cascade did for this image."""

    model: str
    version: int
    blocks: int
    executed: int
    macs: int
    margin: float = Field(description="the stage's confidence in its answer; below its threshold the image goes on")


class RoutingAnswer(BaseModel):
    """Which blocks ran for this image, and what that cost."""

    blocks: int = Field(description="residual blocks of the network; executed + skipped")
    executed: int
    skipped: int
    layers_skipped: int = Field(description="convolutions in the skipped blocks: 2 a basic block, 3 a bottleneck")
    macs: int = Field(description="multiply-adds spent, with stem, projections, gates and head")
    dense_macs: int = Field(description="multiply-adds of the same network without gates")
    saved: float = Field(description="1 - macs / dense_macs; a little under 0 where every block and the gates ran")
    mode: str = Field(description="branch: skipped blocks were not run; mask: they were run and masked away")
    escalated: bool | None = Field(None, description="of a cascade: whether a later stage was asked")
    stages: list[StageAnswer] | None = Field(None, description="of a cascade: the stages that the image reached")
    decisions: list[Decision] | None = Field(None, description="one a gate, with explain=true")


class TimingAnswer(BaseModel):
    """Milliseconds."""

    decode: float
    queue: float = Field(description="waiting for a decoding thread and for the engine")
    inference: float = Field(description="the run of the batch that this image was in")
    total: float


class Classification(BaseModel):
    request_id: str
    model: ModelIdentity
    predictions: list[Prediction]
    routing: RoutingAnswer
    timing_ms: TimingAnswer
    expected_accuracy: float | None = Field(
        None,
        description="with compute_budget: top-1, 0..1, of the calibration's images at the threshold looked up. They "
        "were held out of training, and may be easier than yours",
    )


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What one stage of a cascade did for an image that reached it; ``margin`` is its confidence, 0..1."""

    model: str
    version: int
    blocks: int
    executed: int
    macs: int
    margin: float


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What an engine answered for one image of a batch.

    The arrays are `Routed`'s less the first axis, with the classes' probabilities beside them. ``blocks`` and
    ``executed_blocks`` count the first block too, and of a cascade the blocks of the stages that the image reached,
    which ``stages`` lists.
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
    """Return a batch's results image by image; ``macs`` [N] is what each cost."""
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
    """Return the probabilities along the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: NDArray[np.float32] = powers / powers.sum(-1, keepdims=True)
    return shares


def predictions(probabilities: NDArray[np.float32], labels: list[str], top_k: int) -> list[Prediction]:
    """Return the ``top_k`` likeliest classes, likeliest first; of equals the first class comes first."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    likeliest = zip(order.tolist(), probabilities[order].tolist(), strict=True)
    return [Prediction(label=labels[i], index=i, probability=round(value, 6)) for i, value in likeliest]


def routing(result: ImageResult, dense_macs: int, explain: bool) -> RoutingAnswer:
    """Return which blocks ran, with ``explain`` decision by decision; block i + 1 is column i of the engine's."""
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
    # The columns behind these are of stages of a cascade that the image did not reach.
    reached = result.blocks - 1
    columns = zip(result.executed[:reached].tolist(), result.probability[:reached].tolist(), strict=True)
    return [
        Decision(block=block, executed=executed, probability=round(probability, 6))
        for block, (executed, probability) in enumerate(columns, start=1)
    ]


def timing_answer(timing: Timing) -> TimingAnswer:
    return TimingAnswer(
        decode=round(timing.decode * 1e3, 3),
        queue=round(timing.queue * 1e3, 3),
        inference=round(timing.inference * 1e3, 3),
        total=round(timing.total * 1e3, 3),
    )
