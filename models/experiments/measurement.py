"""The measurement of a trained row: its execute threshold, and its figures on validation and test images."""

from pathlib import Path

from models.checkpoint import CalibrationPoint, Evaluation, read_checkpoint, write_config
from models.data.datasets import find_dataset
from models.data.source import read_source
from models.data.validation_split import validation_source
from models.engines import load_engine
from models.evaluation.calibration import calibrate
from models.evaluation.metrics import measure
from models.experiments.row import Row
from models.training.setup.options import JobOptions


def measure_all(folder: Path, row: Row, options: JobOptions, choose: bool) -> tuple[Evaluation, Evaluation | None]:
    """Return the figures of a checkpoint on the validation images and, unless ``choose``, on the test images.

    Its ``config.json`` gets the execute threshold, the figures on the test images and the accuracy-compute curve on
    the validation images.
    """
    checkpoint = read_checkpoint(folder)
    dataset = find_dataset(options.dataset)
    validation = validation_source(read_source(dataset, "train", options.data), checkpoint.config.training)
    engine = load_engine(checkpoint, "auto", options.device)
    try:
        curve = calibrate(checkpoint, engine, validation, row.at_most) if checkpoint.network.decision_count else []
        threshold = choose_threshold(curve, row.at_most, checkpoint.config.execute_threshold)
        validated = measure(checkpoint, engine, validation, "validation", threshold)
        tested = None
        if not choose:
            tested = measure(checkpoint, engine, read_source(dataset, "test", options.data), "test", threshold)
    finally:
        engine.close()
    changes = {"execute_threshold": threshold, "evaluation": tested, "calibration": curve}
    write_config(folder, checkpoint.config.model_copy(update=changes))
    return validated, tested


def choose_threshold(curve: list[CalibrationPoint], at_most: float | None, default: float) -> float:
    """Return the most accurate threshold with a computation percentage of at most ``at_most``, or the default."""
    within = [point for point in curve if at_most is not None and point.computation_percentage <= at_most]
    return max(within, key=lambda point: point.accuracy).threshold if within else default
