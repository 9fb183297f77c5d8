"""Write the final checkpoint of a fine-tuning: its threshold, temperature, figures and card."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.checkpoint import CalibrationPoint, Checkpoint, read_checkpoint, write_checkpoint
from models.data.image_folder import find_split
from models.data.source import TEST_SPLITS, Source, read_source
from models.engines import load_engine
from models.engines.protocol import Engine
from models.evaluation.calibration import calibrate
from models.evaluation.fixed_routes import compare_fixed_routes, paired_gain
from models.evaluation.metrics import collect, measure, prepared_batches, run_engine
from models.evaluation.temperature import find_temperature, scale_temperature
from models.finetuning.comparison import Comparison, choose_threshold, time_engines
from models.finetuning.plan import Plan
from models.model_card.card import write_card

LEAST_MISTAKES = 5
"""The fewest wrong predictions that a temperature is fitted to. Without any, the best temperature would be 0."""
Batches = Sequence[tuple[Tensor, Tensor]]


def write_result(plan: Plan, max_loss: float, between: Callable[[], None]) -> Comparison:
    """Write the checkpoint ``plan.result`` and its card, and return its comparison with the dense network.

    The execute threshold and the temperature are chosen on the validation images. The figures are measured on the
    folder's test images if it has any. ``max_loss`` is the largest loss of accuracy, in 0..1. ``between`` is called
    between the measurements. It may raise an exception to stop them.
    """
    dense, routed = read_checkpoint(plan.dense), read_checkpoint(plan.routed)
    spec, device = routed.config.input, plan.options.device
    validation = intact(plan.validation, plan)
    batches = list(prepared_batches(validation, spec))
    with closing(load_engine(dense, device=device)) as dense_engine:
        with closing(load_engine(routed, device=device, routing="branch")) as engine:
            curve = calibrate(routed, engine, validation)
            between()
            branching = engine.name
            accuracy = float(correct_images(dense_engine, batches, 0.5).mean())
            threshold = choose_threshold(curve, accuracy, max_loss)
            temperature = fit_temperature(engine, batches, threshold)
        between()
        final = finish(routed, temperature, threshold, curve)
        split, test = choose_test_images(plan, validation)
        if split == "test":
            batches = list(prepared_batches(test, spec))

        def load(checkpoint: Checkpoint) -> Engine:
            return load_engine(checkpoint, branching, device, routing="branch")

        with closing(load_engine(final, device=device)) as engine:
            evaluation = measure(final, engine, test, split, threshold)
            between()
            lost, lost_error = paired_gain(
                correct_images(dense_engine, batches, 0.5), correct_images(engine, batches, threshold)
            )
            dense_ms, routed_ms = time_engines(dense_engine, engine, test, spec, threshold)
        between()
        routes = compare_fixed_routes(final, load, batches, threshold)
    evaluation = evaluation.model_copy(update={"fixed_routes": routes})
    config = final.config.model_copy(update={"evaluation": evaluation})
    write_checkpoint(plan.result, final.network, config)
    write_card(plan.result)
    return Comparison(
        dense_accuracy=evaluation.accuracy + lost,
        routed=evaluation,
        lost=lost,
        lost_error=lost_error,
        dense_ms=dense_ms,
        routed_ms=routed_ms,
        open_at_half=open_share(curve, len(routed.network.blocks)),
    )


def fit_temperature(engine: Engine, batches: Batches, threshold: float) -> float:
    """Return the temperature for the outputs of an engine, or 1 if few of them are wrong."""
    logits, labels, _ = collect(run_engine(engine, threshold), batches)
    if (logits.argmax(1) != labels).sum() < LEAST_MISTAKES:
        return 1.0
    return find_temperature(torch.from_numpy(logits), torch.from_numpy(labels))


def finish(routed: Checkpoint, temperature: float, threshold: float, curve: list[CalibrationPoint]) -> Checkpoint:
    """Return the checkpoint with the temperature, the execute threshold and the accuracy-compute curve."""
    known = {} if temperature == 1 else {"temperature": round(temperature, 4)}
    training = routed.config.training.model_copy(update=known)
    changes = {"training": training, "execute_threshold": threshold, "calibration": curve}
    return replace(
        routed,
        network=scale_temperature(routed.network, temperature),
        config=routed.config.model_copy(update=changes),
    )


def open_share(curve: list[CalibrationPoint], blocks: int) -> float:
    """Return the share of the gated blocks that images execute at threshold 0.5."""
    [half] = [point for point in curve if point.threshold == 0.5]
    return (half.computation_percentage / 100 * blocks - 1) / (blocks - 1)


def choose_test_images(plan: Plan, validation: Source) -> tuple[str, Source]:
    """Return the images for the figures and the name of their split."""
    data = plan.options.data
    if data is None or find_split(data, TEST_SPLITS[:1]) is None:
        return "validation", validation
    test = read_source(plan.train.dataset, "test", data).labelled_as(plan.train.classes)
    return "test", intact(test, plan)


def intact(source: Source, plan: Plan) -> Source:
    """Return a source without its damaged images, if the options leave these out."""
    return source.without_damaged() if plan.options.skip_damaged else source


def correct_images(engine: Engine, batches: Batches, threshold: float) -> NDArray[np.bool_]:
    """Return which of N images an engine classifies correctly, as bool [N]."""
    logits, labels, _ = collect(run_engine(engine, threshold), batches)
    correct: NDArray[np.bool_] = logits.argmax(1) == labels
    return correct
