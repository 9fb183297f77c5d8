"""skipnet evaluate"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.cli.measuring.cascade import evaluate_cascade
from service.settings import DeviceName, EngineName, Options

if TYPE_CHECKING:
    from models.checkpoint import CalibrationPoint, Checkpoint, Evaluation
    from models.data.source import Source
    from models.engines.protocol import Engine


class Evaluate(Options):
    """Measure the accuracy and the computation of a checkpoint. --write stores them in its config.json."""

    checkpoint: CliPositionalArg[Path] = Field(description="folder <repository>/<model>/<version>")
    dataset: str | None = Field(None, description="data set; default: the one that the checkpoint was trained on")
    data: Path | None = Field(
        None,
        description="local folder of the data set; default: that of the checkpoint's training, or the hub",
    )
    engine: EngineName = Field("auto", description="engine that runs the network")
    device: DeviceName = Field("auto", description="auto, cpu, cuda or cuda:N")
    execute_threshold: float | None = Field(None, ge=0, le=1, description="default: the checkpoint's own")
    skip_damaged: bool = Field(False, description="leave out images that cannot be read")
    calibrate: bool = Field(False, description="also measure the accuracy-compute curve, on validation images")
    half: bool = Field(
        False,
        description="round the weights to half precision, unless decisions or accuracy on validation images change",
    )
    temper: bool = Field(
        False,
        description="temperature scaling: divide the class logits by the temperature that calibrates the probabilities "
        "on validation images; weights in half precision stay in half precision",
    )
    fixed_routes: bool = Field(True, description="compare with fixed routes of the same weights and cost")
    write: bool = Field(
        False,
        description="write the figures to config.json and the model card, and with --half or --temper the weights",
    )

    def cli_cmd(self) -> None:
        from models.checkpoint import is_cascade, is_half, read_checkpoint, write_checkpoint, write_config
        from models.data.datasets import find_dataset
        from models.data.source import read_source
        from models.data.validation_split import find_data, has_test_images, validation_source
        from models.engines import load_engine
        from models.evaluation.calibration import calibrate
        from models.evaluation.fixed_routes import compare_fixed_routes, describe_routes
        from models.evaluation.metrics import measure, prepared_batches
        from models.model_card.card import write_card

        if is_cascade(self.checkpoint):
            evaluate_cascade(self)
            return
        checkpoint = read_checkpoint(self.checkpoint)
        config = checkpoint.config
        dataset = find_dataset(self.dataset or config.training.dataset or "(none named)")
        threshold = config.execute_threshold if self.execute_threshold is None else self.execute_threshold
        data = self.data or find_data(dataset, config.training)
        half = self.half or (self.temper and is_half(self.checkpoint))
        split = "test" if has_test_images(config.training, data) else "validation"
        if self.calibrate or half or self.temper or split == "validation":
            train = read_source(dataset, "train", data).labelled_as(config.labels)
            validation = self.intact(validation_source(train, config.training), config.input.resize)
        if split == "validation":
            print(f"{data} has no test images: the figures are of the {len(validation):,} validation images")
            test = validation
        else:
            test = self.intact(read_source(dataset, "test", data).labelled_as(config.labels), config.input.resize)
        if self.temper:
            checkpoint = self.scale_temperature(checkpoint, validation, threshold)
        if half:
            checkpoint = self.round_weights(checkpoint, validation, threshold)
        engine = load_engine(checkpoint, self.engine, self.device)
        changes: dict[str, object] = {}
        try:
            evaluation = measure(checkpoint, engine, test, split, threshold)
            print(describe(evaluation))
            if self.fixed_routes and checkpoint.network.gate_kind is not None:
                batches = list(prepared_batches(test, config.input))
                routes = compare_fixed_routes(checkpoint, self.load, batches, threshold)
                print(describe_routes(evaluation.macs, routes))
                evaluation = evaluation.model_copy(update={"fixed_routes": routes})
            print(compare(evaluation, config.evaluation))
            changes["evaluation"] = evaluation
            if self.calibrate:
                changes["calibration"] = curve = calibrate(checkpoint, engine, validation)
                print(*map(describe_point, curve), sep="\n")
        finally:
            engine.close()
        written = checkpoint.config.model_copy(update=changes)
        if self.write and (half or self.temper):
            write_checkpoint(self.checkpoint, checkpoint.network, written, half=half)
        elif self.write:
            write_config(self.checkpoint, written)
        if self.write:
            print("card:", write_card(self.checkpoint))

    def load(self, checkpoint: "Checkpoint") -> "Engine":
        """Return the engine that the options ask for."""
        from models.engines import load_engine

        return load_engine(checkpoint, self.engine, self.device)

    def intact(self, source: "Source", shorter_side: int) -> "Source":
        """Return the source, without damaged images if --skip-damaged is set. Print the images that were left out."""
        from models.data.source import describe

        if self.skip_damaged:
            source = source.without_damaged(shorter_side)
        if source.damaged or source.examples.skipped:
            print(describe(source))
        return source

    def scale_temperature(self, checkpoint: "Checkpoint", validation: "Source", threshold: float) -> "Checkpoint":
        """Return the checkpoint after temperature scaling. Its config records the temperature."""
        from models.engines import load_engine
        from models.evaluation.temperature import measure_temperature, scale_temperature

        engine = load_engine(checkpoint, self.engine, self.device)
        try:
            temperature = measure_temperature(checkpoint, engine, validation, threshold)
        finally:
            engine.close()
        print(f"class logits are divided by {temperature:.3f}")
        training = checkpoint.config.training
        updated = training.model_copy(update={"temperature": round((training.temperature or 1.0) * temperature, 4)})
        return replace(
            checkpoint,
            network=scale_temperature(checkpoint.network, temperature),
            config=checkpoint.config.model_copy(update={"training": updated}),
        )

    def round_weights(self, checkpoint: "Checkpoint", validation: "Source", threshold: float) -> "Checkpoint":
        """Return the checkpoint with rounded weights.

        Raises UserError if that changes its outputs too much.
        """
        from models.engines import load_engine
        from models.evaluation.agreement import compare_engines
        from models.evaluation.metrics import prepared_batches
        from models.evaluation.precision import check_rounding, round_weights

        after = replace(checkpoint, network=round_weights(checkpoint.network))
        engine, rounded = (load_engine(each, self.engine, self.device) for each in (checkpoint, after))
        try:
            batches = prepared_batches(validation, checkpoint.config.input)
            agreement = compare_engines(rounded, engine, batches, threshold)
        finally:
            engine.close()
            rounded.close()
        check_rounding(agreement)
        print(
            f"half precision, on {agreement.images} validation images: {1 - agreement.decisions:.3%} of the decisions "
            f"flip, accuracy {agreement.reference_accuracy:.2%} -> {agreement.accuracy:.2%}"
        )
        return after


def compare(measured: "Evaluation", recorded: "Evaluation | None") -> str:
    """Compare figures with those in config.json, and return the result as text. The engine may differ."""
    if recorded is None:
        return "config.json has no figures yet"
    same = measured.model_dump(exclude={"engine"}) == recorded.model_dump(exclude={"engine"})
    return (
        "as in config.json"
        if same
        else (
            f"config.json says          accuracy {recorded.accuracy:.2%}, computation percentage "
            f"{recorded.computation_percentage:.2f}, {recorded.macs / 1e6:.2f} M MACs at threshold "
            f"{recorded.execute_threshold} ({recorded.dataset} {recorded.split}, {recorded.images} images, engine "
            f"{recorded.engine})"
        )
    )


def describe_point(point: "CalibrationPoint") -> str:
    """Return a point of the accuracy-compute curve as text."""
    return (
        f"threshold {point.threshold:8.6g}: accuracy {point.accuracy:6.2%}, "
        f"computation {point.computation_percentage:5.1f} %, MACs {point.mac_share:6.1%} of dense"
    )


def describe(evaluation: "Evaluation") -> str:
    """Return the figures of an evaluation as text."""
    saved = 1 - evaluation.macs / evaluation.dense_macs
    rates = " ".join(f"{rate:.2f}" for rate in evaluation.execution_rate)
    worst = min(evaluation.accuracy_per_class, key=lambda label: evaluation.accuracy_per_class[label])
    return (
        f"{evaluation.dataset} {evaluation.split}, {evaluation.images} images, engine {evaluation.engine}, "
        f"threshold {evaluation.execute_threshold}\n"
        f"top-1 accuracy            {evaluation.accuracy:.2%} "
        f"(lowest: {worst}, {evaluation.accuracy_per_class[worst]:.1%})\n"
        f"decisions that skip       {evaluation.decisions_skipped:.1%}\n"
        f"computation percentage    {evaluation.computation_percentage:.2f} (the paper's: executed share of blocks)\n"
        f"MACs an image             {evaluation.macs / 1e6:.2f} M of {evaluation.dense_macs / 1e6:.2f} M dense, "
        f"{saved:.1%} saved, gates counted\n"
        f"execution rate per block  1.00 {rates}"
    )
