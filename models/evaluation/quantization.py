"""Quantise a checkpoint for the engine native_int16, if that keeps its decisions and its accuracy."""

from dataclasses import dataclass, replace

import numpy as np

from models.checkpoint import Checkpoint, Quantization
from models.data.source import Source
from models.engines import load_engine
from models.engines.folding import fold
from models.engines.native.activation_limits import measure_limits
from models.errors import UserError
from models.evaluation.agreement import Agreement, compare_engines
from models.evaluation.metrics import prepared_batches


@dataclass(frozen=True)
class Allowed:
    """The largest loss of accuracy and the largest share of changed decisions, both in 0..1."""

    lost: float = 0.003
    decisions: float = 0.01

    def check(self, agreement: Agreement) -> None:
        """Raise UserError if the quantised network, compared with float32, exceeds a limit."""
        lost, changed = agreement.reference_accuracy - agreement.accuracy, 1 - agreement.decisions
        if lost > self.lost or changed > self.decisions:
            raise UserError(
                f"in 16-bit integers accuracy goes from {agreement.reference_accuracy:.2%} to {agreement.accuracy:.2%} "
                f"and {changed:.2%} of the decisions change; the limits are a loss of {100 * self.lost:g} points and "
                f"{self.decisions:.2%} of the decisions. Calibrate on more images, or raise the limits"
            )


def quantize(checkpoint: Checkpoint, validation: Source, calibration_images: int, allowed: Allowed) -> Checkpoint:
    """Return the checkpoint with the scales of its integers and their comparison with float32 in its config.

    The scales are measured on the first ``calibration_images`` of ``validation``, in a fixed random order. The
    comparison uses the others. Raises UserError if there are no others, or if the comparison exceeds the ``allowed``
    limits.
    """
    if not 0 < calibration_images < len(validation):
        raise UserError(
            f"{calibration_images} images for calibration leave none of the {len(validation)} validation images to "
            "compare on: calibrate on fewer"
        )
    order = np.random.default_rng(0).permutation(len(validation))
    seen, others = (
        validation.select(sorted(part.tolist())) for part in (order[:calibration_images], order[calibration_images:])
    )
    config = checkpoint.config
    batches = (images for images, _ in prepared_batches(seen, config.input))
    limits = measure_limits(fold(checkpoint.network), batches, config.execute_threshold)
    quantization = Quantization(
        activation_limits=[[float(np.float32(limit)) for limit in block] for block in limits],
        calibration_images=calibration_images,
        images=len(others),
        execute_threshold=config.execute_threshold,
        decisions_changed=0,
        labels_changed=0,
        accuracy=0,
        float_accuracy=0,
    )
    quantized = with_quantization(checkpoint, quantization)
    agreement = compare(checkpoint, quantized, others)
    allowed.check(agreement)
    return with_quantization(
        checkpoint,
        quantization.model_copy(
            update={
                "decisions_changed": round(1 - agreement.decisions, 9),
                "labels_changed": round(1 - agreement.labels, 9),
                "accuracy": agreement.accuracy,
                "float_accuracy": agreement.reference_accuracy,
            }
        ),
    )


def with_quantization(checkpoint: Checkpoint, quantization: Quantization) -> Checkpoint:
    return replace(checkpoint, config=checkpoint.config.model_copy(update={"quantization": quantization}))


def compare(checkpoint: Checkpoint, quantized: Checkpoint, images: Source) -> Agreement:
    """Return the agreement of the quantised network with the same network in float32."""
    engine = load_engine(quantized, "native_int16", "cpu")
    try:
        reference = load_engine(checkpoint, "native", "cpu")
        try:
            batches = prepared_batches(images, checkpoint.config.input)
            return compare_engines(engine, reference, batches, checkpoint.config.execute_threshold)
        finally:
            reference.close()
    finally:
        engine.close()
