"""skipnet cascade"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from models.errors import UserError
from service.settings import DeviceName, EngineName, Options

if TYPE_CHECKING:
    from models.cascade.config import Cascade, CascadeConfig
    from models.cascade.fit import StageOutputs
    from models.checkpoint import Checkpoint
    from models.data.source import Source
    from service.cli.measuring.evaluate import Evaluate


class BuildCascade(Options):
    """Build a cascade: images of which the first checkpoint is unsure are escalated to the next one.

    skipnet cascade models/repository/cheap/1 models/repository/accurate/1 --data DIR --output models/repository/mine
    """

    stages: CliPositionalArg[list[Path]] = Field(
        description="checkpoint folders <repository>/<model>/<version>, the cheapest first; all of one repository"
    )
    output: Path = Field(description="folder <repository>/<model>; the cascade becomes its next version")
    dataset: str | None = Field(None, description="data set; default: the one that the last stage was trained on")
    data: Path | None = Field(None, description="local folder of the data set; default: the hub")
    engine: EngineName = Field("auto", description="engine that runs the networks")
    device: DeviceName = Field("auto", description="auto, cpu, cuda or cuda:N")
    escalate: float = Field(0.08, ge=0, le=1, description="share of a stage's validation images to escalate")
    budget: float | None = Field(
        None,
        gt=0,
        description="mean MACs of an image as a share of the last stage's dense MACs; replaces --escalate",
    )
    execute_thresholds: list[float] = Field([], description="one for each stage; default: each checkpoint's own")
    measure: Literal["margin", "maximum", "entropy"] = Field("margin", description="measure of an image's confidence")
    combination: Literal["mean", "last"] = Field(
        "mean", description="output: mean of the stages' probabilities, or those of the last stage"
    )

    def cli_cmd(self) -> None:
        from models.cascade.config import Cascade, read_cascade, write_cascade_config
        from models.cascade.engine import load_cascade_engine
        from models.cascade.evaluate import measure_cascade
        from models.checkpoint import read_checkpoint
        from models.data.datasets import find_dataset
        from models.data.source import read_source
        from models.model_card.cascade_card import write_cascade_card

        repository = self.output.parent
        if any(stage.resolve().parents[1] != repository.resolve() for stage in self.stages):
            raise UserError(f"the stages must be in the repository of --output, {repository}, as <model>/<version>")
        checkpoints = [read_checkpoint(stage) for stage in self.stages]
        if self.execute_thresholds and len(self.execute_thresholds) != len(checkpoints):
            raise UserError(f"{len(checkpoints)} stages need as many --execute-thresholds, separated by commas")
        dataset = find_dataset(self.dataset or checkpoints[-1].config.training.dataset or "(none named)")
        labels = checkpoints[0].config.labels
        config = self.fit(checkpoints, read_source(dataset, "train", self.data).labelled_as(labels))
        folder = self.next_version()
        cascade = Cascade(folder, config, tuple(checkpoints))
        engine = load_cascade_engine(cascade, self.engine, self.device)
        try:
            test = read_source(dataset, "test", self.data).labelled_as(labels)
            evaluation = measure_cascade(cascade, engine, test, "test")
        finally:
            engine.close()
        write_cascade_config(folder, config.model_copy(update={"evaluation": evaluation}))
        print(describe(read_cascade(folder)))
        print("card:", write_cascade_card(folder))

    def fit(self, checkpoints: "list[Checkpoint]", train: "Source") -> "CascadeConfig":
        """Return the cascade, fitted on the validation images that all stages have in common."""
        import numpy as np

        from models.cascade.evaluate import collect_outputs
        from models.cascade.fit import compare_measures, fit_cascade
        from models.data.validation_split import validation_source
        from models.engines import load_engine
        from models.evaluation.metrics import prepared_batches

        # Each stage was trained on all training images except its validation images.
        fewest = min(checkpoints, key=lambda each: each.config.training.validation_images or len(train))
        batches = list(prepared_batches(validation_source(train, fewest.config.training), fewest.config.input))
        truth = [int(label) for _, batch in batches for label in batch]
        outputs: list[list[StageOutputs]] = []
        owns = self.execute_thresholds or [checkpoint.config.execute_threshold for checkpoint in checkpoints]
        for checkpoint, own in zip(checkpoints, owns, strict=True):
            engine = load_engine(checkpoint, self.engine, self.device)
            try:
                outputs.append(collect_outputs(checkpoint, engine, batches, candidate_thresholds(checkpoint, own)))
            finally:
                engine.close()
        known = np.asarray(truth)
        for measure, auroc in compare_measures(outputs[0][0].logits, known, 1.0).items():
            print(f"failure prediction of the first stage by {measure:<8} AUROC {auroc:.3f}")
        return fit_cascade(
            checkpoints,
            outputs,
            known,
            measure=self.measure,
            combination=self.combination,
            escalate=self.escalate,
            budget=self.budget,
        )

    def next_version(self) -> Path:
        """Return the folder of the output model's next version."""
        from models.model_repository import versions

        return self.output / str(max(versions(self.output.parent, self.output.name), default=0) + 1)


def evaluate_cascade(options: "Evaluate") -> None:
    """Measure a cascade for `skipnet evaluate`. Its options for single networks do not apply."""
    from models.cascade.config import read_cascade, write_cascade_config
    from models.cascade.engine import load_cascade_engine
    from models.cascade.evaluate import measure_cascade
    from models.data.datasets import find_dataset
    from models.data.source import read_source
    from models.model_card.cascade_card import write_cascade_card

    if options.calibrate:
        raise UserError(
            f"{options.checkpoint} is a cascade: `skipnet cascade` measures its accuracy-compute curve, and "
            "`skipnet frontier` compares it with its rivals"
        )
    given = {"half": options.half, "temper": options.temper}
    if wrong := [name for name, value in given.items() if value] + (
        ["execute-threshold"] if options.execute_threshold is not None else []
    ):
        raise UserError(f"{options.checkpoint} is a cascade: --{wrong[0]} is for its stages; name one of them")
    cascade = read_cascade(options.checkpoint)
    known = cascade.config.evaluation
    dataset = find_dataset(options.dataset or (known.dataset if known else "(none named)"))
    engine = load_cascade_engine(cascade, options.engine, options.device)
    try:
        source = read_source(dataset, "test", options.data).labelled_as(cascade.config.labels)
        evaluation = measure_cascade(cascade, engine, source, "test")
    finally:
        engine.close()
    measured = replace(cascade, config=cascade.config.model_copy(update={"evaluation": evaluation}))
    print(describe(measured))
    if options.write:
        write_cascade_config(options.checkpoint, measured.config)
        print("card:", write_cascade_card(options.checkpoint))


def candidate_thresholds(checkpoint: "Checkpoint", own: float) -> list[float]:
    """Return the execute thresholds to try for a stage: ``own``, and thresholds of its curve with different MACs."""
    if checkpoint.network.gate_kind is None:
        return [own]
    chosen = [own]
    shares: list[float] = []
    for point in sorted(checkpoint.config.calibration, key=lambda point: point.mac_share):
        if not shares or point.mac_share - shares[-1] > 0.02:
            shares.append(point.mac_share)
            chosen.append(point.threshold)
    return list(dict.fromkeys(chosen))


def describe(cascade: "Cascade") -> str:
    """Return a cascade's stages and figures as text."""
    lines = [f"cascade: {cascade.folder}"]
    for stage in cascade.config.stages:
        escalates = "" if stage.margin is None else f", escalates below {cascade.config.measure} {stage.margin:g}"
        lines.append(
            f"  {stage.model} version {stage.version}, threshold {stage.execute_threshold:g}, "
            f"temperature {stage.temperature:g}{escalates}"
        )
    if (found := cascade.config.evaluation) is not None:
        shares = ", ".join(f"{share:.1%}" for share in found.escalated)
        lines.append(f"{found.dataset} {found.split}, {found.images} images, engine {found.engine}")
        lines.append(f"top-1 accuracy  {found.accuracy:.2%}; {shares} of the images escalated")
        lines.append(f"MACs an image   {found.macs / 1e6:.2f} M; the last stage alone {found.dense_macs / 1e6:.2f} M")
    return "\n".join(lines)
