"""skipnet train"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from models.errors import UserError
from service.cli.training.options import VALIDATION_IMAGES_TO_CHOOSE, TrainingOptions, progress_bar, resumable

if TYPE_CHECKING:
    from models.training.recipes import Stage

STAGES: "dict[str, tuple[Stage, ...]]" = {
    "plain": ("plain",),
    "sp": ("sp",),
    "hrl": ("hrl",),
    "sp,hrl": ("sp", "hrl"),
}


class Train(TrainingOptions):
    """Train a network: SP then HRL where it has gates, plain where it has none.

    A short run: skipnet train --arch cifar10_rnn_gate_38 --dataset cifar10 --recipe short --epochs 1 --limit 2560
    """

    arch: str = Field(description="architecture, for instance cifar10_rnn_gate_38")
    dataset: str = Field(description="cifar10, cifar100, svhn, imagenet or imagefolder")
    recipe: str = Field(
        "paper", description="hyper-parameters: paper, short, budget, multi_budget, adaptive or distilled"
    )
    stages: str | None = Field(
        None,
        pattern=f"^({'|'.join(STAGES)})$",
        description="plain, sp, hrl or sp,hrl; default: sp,hrl, or hrl where --init has gates already, or plain for a "
        "network without gates; hrl alone starts from --init",
    )
    init: Path | None = Field(
        None, description="checkpoint to start from; a dense network can get gates, or a routed one lose them"
    )
    teacher: Path | None = Field(
        None,
        description="teacher of recipes multi_budget, adaptive and distilled: a dense network's checkpoint, or of "
        "skipnet teach teacher_logits.safetensors, or teacher.safetensors as an online teacher; default: --init",
    )
    epochs: int | None = Field(None, ge=1, description="epochs of each stage; default: the recipe's")
    batch: int | None = Field(None, ge=1, description="images of a step; default: the recipe's")
    changes: str = Field(
        "{}", description="JSON object of values that replace the recipe's own; models/training/recipes.py names them"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order, augmentation and sampled gates")
    held_out: int = Field(
        VALIDATION_IMAGES_TO_CHOOSE, ge=1, description="validation images, taken from the training images"
    )
    skip_damaged: bool = Field(
        False, description="leave out images that can't be read; decodes all of them once before training"
    )
    size: int | None = Field(
        None, ge=32, le=2048, description="side of the input in pixels; default: the architecture's"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile for the supervised step")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of convolutions while training; auto: bfloat16 where the processor multiplies it"
    )
    workers: int = Field(2, ge=0, description="processes that decode a data set too large for memory")
    output: Path | None = Field(None, description="folder of the run; default: runs/<arch>")
    resume: bool = Field(False, description="resume the run in --output")
    model_repository: Path | None = Field(
        None, description="folder in which the trained network becomes the next version of --model"
    )
    model: str | None = Field(None, description="name in --model-repository; default: <arch>")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="port of the run's metrics for Prometheus")
    metrics_host: str = Field("127.0.0.1", description="address of --metrics-port; 0.0.0.0 listens on all")

    def cli_cmd(self) -> None:
        from models.model_repository import publish, require_labels
        from models.training.loop import train
        from models.training.recipes import read_changes
        from models.training.setup.job import make_job
        from models.training.setup.options import JobOptions
        from service.telemetry.training_metrics import TrainingMetrics

        self.yield_processor()
        chosen = self.model_dump(include=set(JobOptions.__annotations__) - {"changes", "output", "stages"})
        output = self.output or Path("runs") / self.arch
        stages = STAGES[self.stages] if self.stages else None
        if stages == ("hrl",) and self.init is None:
            raise UserError(
                "hrl alone starts from a trained network: name its checkpoint with --init, or add the stage sp before "
                "it: --stages sp,hrl"
            )
        changes = read_changes(self.changes)
        job = make_job(JobOptions(**chosen, output=output, stages=stages, changes=changes))
        name = self.model or job.architecture.name
        if self.model_repository:
            # Fail before hours of training, not after.
            require_labels(self.model_repository, name, job.labels)
        print(job.data)
        print(f"{job.architecture.name} on {job.device}, {', '.join(recipe.stage for recipe in job.recipes)}: {output}")

        metrics = TrainingMetrics(job.architecture.name)
        if self.metrics_port is not None:
            print("metrics:", metrics.serve(self.metrics_host, self.metrics_port), flush=True)
        with resumable("--resume"):
            folder = train(job, resume=self.resume, save_every=self.save_every, show=progress_bar, watcher=metrics)
        print("checkpoint:", folder)
        if self.model_repository:
            print("published:", publish(folder, self.model_repository, name))
