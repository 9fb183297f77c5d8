"""skipnet train"""

from pathlib import Path

from pydantic import Field

from models.errors import UserError
from models.training.setup.options import JobOptions
from service.cli.training.options import RunOptions, progress_bar, resumable


class Train(RunOptions, JobOptions):
    """Train a network: SP then HRL where it has gates, plain where it has none.

    A short run: skipnet train --arch cifar10_rnn_gate_38 --dataset cifar10 --recipe short --epochs 1 --limit 2560
    """

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

        self.check()
        self.yield_processor()
        job = make_job(self)
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

    def check(self) -> None:
        """Raise UserError for options that don't fit each other."""
        if self.stages == "hrl" and self.init is None:
            raise UserError(
                "hrl alone starts from a trained network: name its checkpoint with --init, or add the stage sp before "
                "it: --stages sp,hrl"
            )
