"""skipnet train"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from models.errors import UserError
from service.cli.training.options import VALIDATION_IMAGES_TO_CHOOSE, NetworkTrainingOptions, progress_bar, resumable

if TYPE_CHECKING:
    from models.training.recipes import Stage
    from models.training.setup.options import JobOptions

STAGES: "dict[str, tuple[Stage, ...]]" = {
    "plain": ("plain",),
    "sp": ("sp",),
    "hrl": ("hrl",),
    "sp,hrl": ("sp", "hrl"),
}


class Train(NetworkTrainingOptions):
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
        from models.training.setup.job import make_job
        from service.telemetry.training_metrics import TrainingMetrics

        self.yield_processor()
        job = make_job(self.job_options())
        name = self.model or job.architecture.name
        if self.model_repository:
            # Fail before hours of training, not after.
            require_labels(self.model_repository, name, job.labels)
        print(job.data)
        stages = ", ".join(recipe.stage for recipe in job.recipes)
        print(f"{job.architecture.name} on {job.device}, {stages}: {job.folder}")

        metrics = TrainingMetrics(job.architecture.name)
        if self.metrics_port is not None:
            print("metrics:", metrics.serve(self.metrics_host, self.metrics_port), flush=True)
        with resumable("--resume"):
            folder = train(job, resume=self.resume, save_every=self.save_every, show=progress_bar, watcher=metrics)
        print("checkpoint:", folder)
        if self.model_repository:
            print("published:", publish(folder, self.model_repository, name))

    def job_options(self) -> "JobOptions":
        """Return the options of the job; raises UserError for values that don't fit each other or the recipes."""
        from models.training.recipes import read_changes
        from models.training.setup.options import JobOptions

        if self.stages == "hrl" and self.init is None:
            raise UserError(
                "hrl alone starts from a trained network: name its checkpoint with --init, or add the stage sp before "
                "it: --stages sp,hrl"
            )
        return JobOptions(
            arch=self.arch,
            dataset=self.dataset,
            output=self.output or Path("runs") / self.arch,
            data=self.data,
            stages=STAGES[self.stages] if self.stages else None,
            recipe=self.recipe,
            changes=read_changes(self.changes),
            init=self.init,
            teacher=self.teacher,
            epochs=self.epochs,
            batch=self.batch,
            seed=self.seed,
            held_out=self.held_out,
            limit=self.limit,
            skip_damaged=self.skip_damaged,
            size=self.size,
            device=self.device,
            compile=self.compile,
            precision=self.precision,
            workers=self.workers,
        )
