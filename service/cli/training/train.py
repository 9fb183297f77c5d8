"""skipnet train"""

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from models.errors import UserError
from models.training.setup.options import JobOptions
from service.cli.training.finetune import finetune
from service.cli.training.options import RunOptions, resumable
from service.cli.training.progress_bar import TrainingBar
from service.cli.training.publication import publish_once, warn_of_routing

if TYPE_CHECKING:
    from models.training.types import Job
    from service.telemetry.training_metrics import TrainingMetrics


class Train(RunOptions, JobOptions):
    """Train a network: SP and then HRL if it has gates, else one plain stage.

    A short run: skipnet train --arch cifar10_rnn_gate_38 --dataset cifar10 --recipe short --epochs 1 --limit 2560
    Your photos: skipnet train --init CHECKPOINT --dataset imagefolder --data PHOTOS --recipe finetune
    """

    resume: bool = Field(False, description="resume the run in --output")
    model_repository: Path | None = Field(
        None,
        description="folder in which the trained network becomes the next version of --model; default of finetune: the "
        "folder that skipnet serve reads",
    )
    model: str | None = Field(
        None, description="name in --model-repository; default: <arch>, of finetune the name of the folder --data"
    )
    max_loss: float = Field(
        2.0,
        ge=0,
        le=100,
        description="largest loss of accuracy of recipe finetune against its dense network, in points",
    )
    publish_anyway: bool = Field(
        False,
        description="publish the network of recipe finetune even if it lost more, saves nothing or has closed gates",
    )
    metrics_port: int | None = Field(None, ge=0, le=65535, description="port of the run's metrics for Prometheus")
    metrics_host: str = Field("127.0.0.1", description="address of --metrics-port; 0.0.0.0 listens on all")

    def cli_cmd(self) -> None:
        from models.training.distributed.group import process_group
        from models.training.setup.hardware import choose_device

        self.check()
        self.yield_processor()
        with resumable("--resume"), process_group(choose_device(self.device)):
            if self.finetunes:
                finetune(self)
            else:
                self.train()

    def train(self) -> None:
        """Train in each process that torchrun has started. The first process reports and publishes."""
        from models.model_repository import require_labels
        from models.training.distributed.group import is_first
        from models.training.setup.job import make_job
        from models.training.state import is_finished

        job = make_job(self.model_copy(update={"init": self.import_start(self.folder)}))
        name = self.model or job.architecture.name
        if not is_first():
            self.run_job(job, None)
            return
        if self.model_repository:
            # An error here comes before hours of training, not after them.
            require_labels(self.model_repository, name, job.labels)
        print(job.data)
        stages = ", ".join(recipe.stage for recipe in job.recipes)
        print(f"{job.architecture.name} on {job.device}, {stages}: {job.folder}")
        if self.resume and is_finished(job.folder):
            print("nothing to train: the run is finished")
        folder = self.run_job(job, self.make_metrics(job.architecture.name))
        print("checkpoint:", folder)
        if self.model_repository:
            warn_of_routing(folder, self)
            published, message = publish_once(folder, self.model_repository, name, self.resume)
            print(f"{message}: {published}")

    def make_metrics(self, architecture: str) -> "TrainingMetrics":
        """Return the metrics of the run, which are served if --metrics-port is set."""
        from service.telemetry.training_metrics import TrainingMetrics

        metrics = TrainingMetrics(architecture)
        if self.metrics_port is not None:
            print("metrics:", metrics.serve(self.metrics_host, self.metrics_port), flush=True)
        return metrics

    def run_job(self, job: "Job", metrics: "TrainingMetrics | None", title: str = "") -> Path:
        """Train or resume a job, and return the folder of its checkpoint; with metrics, draw a progress bar."""
        from models.training.loop import train

        if metrics is None:
            return train(job, resume=self.resume, save_every=self.save_every, show=iter)
        with closing(TrainingBar(title, metrics)) as bar:
            return train(job, resume=self.resume, save_every=self.save_every, show=iter, watcher=bar)

    def import_start(self, output: Path) -> Path | None:
        """Return the checkpoint of --init. A network in another format is first imported into ``output``."""
        from models.checkpoint import CheckpointError, read_config
        from models.importing.source import import_source
        from models.training.distributed.group import is_first, wait_for_all

        if self.init is None:
            return None
        try:
            read_config(self.init)
            return self.init
        except CheckpointError:
            imported = output / "imported"
        if is_first() and not (self.resume and imported.is_dir()):
            # A path joins the two slashes of a URL into one.
            config = import_source(re.sub(r"^(\w+):/", r"\1://", str(self.init)), imported)
            print(f"imported: {imported}, {config.architecture}, {len(config.labels)} classes")
        wait_for_all()
        return imported

    def check(self) -> None:
        """Raise UserError for options that do not fit each other."""
        if not self.arch and not self.finetunes:
            raise UserError("--arch is missing: name the architecture to train, for instance cifar10_rnn_gate_38")
        if self.stages == "hrl" and self.init is None:
            raise UserError(
                "hrl alone starts from a trained network: name its checkpoint with --init, or add the stage sp before "
                "it: --stages sp,hrl"
            )
