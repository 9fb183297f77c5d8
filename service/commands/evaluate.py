"""skipnet evaluate"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.settings import DeviceName, EngineName, Options

if TYPE_CHECKING:
    from models.checkpoint import Evaluation


class Evaluate(Options):
    """Measure a checkpoint's accuracy and computation; --write puts the figures into its config.json."""

    checkpoint: CliPositionalArg[Path] = Field(description="folder <repository>/<model>/<version>")
    dataset: str | None = Field(None, description="data set; default: the one that the checkpoint was trained on")
    data: Path | None = Field(None, description="local folder of the data set; default: the hub")
    engine: EngineName = Field("auto", description="what runs the network")
    device: DeviceName = Field("auto", description="auto, cpu, cuda or cuda:N")
    execute_threshold: float | None = Field(None, ge=0, le=1, description="default: the checkpoint's own")
    calibrate: bool = Field(False, description="measure the threshold curve too, on held-out training images")
    write: bool = Field(False, description="write the figures into the checkpoint's config.json")

    def cli_cmd(self) -> None:
        from models.checkpoint import read_checkpoint, write_config
        from models.data.catalogue import find_dataset
        from models.data.source import read_source
        from models.engines import load_engine
        from models.evaluation import calibrate, measure
        from models.training.job import held_out_source

        checkpoint = read_checkpoint(self.checkpoint)
        row = find_dataset(self.dataset or checkpoint.config.training.get("dataset", "(none named)"))
        threshold = checkpoint.config.execute_threshold if self.execute_threshold is None else self.execute_threshold
        engine = load_engine(checkpoint, self.engine, self.device)
        changes: dict[str, object] = {}
        try:
            evaluation = measure(checkpoint, engine, read_source(row, "test", self.data), "test", threshold)
            print(describe(evaluation))
            changes["evaluation"] = evaluation
            if self.calibrate:
                kept_apart = held_out_source(read_source(row, "train", self.data), checkpoint.config.training)
                curve = calibrate(checkpoint, engine, kept_apart)
                for point in curve:
                    print(
                        f"threshold {point.threshold:4.2f}: accuracy {point.accuracy:6.2%}, "
                        f"computation {point.computation_percentage:5.1f} %, MACs {point.mac_share:6.1%} of dense"
                    )
                changes["calibration"] = curve
        finally:
            engine.close()
        if self.write:
            write_config(self.checkpoint, checkpoint.config.model_copy(update=changes))


def describe(evaluation: "Evaluation") -> str:
    """Return the figures of an evaluation for a person to read."""
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
