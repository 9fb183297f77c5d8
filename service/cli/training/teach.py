"""skipnet teach"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg

from models.persistence.legacy_names import TEACHERS
from models.training.setup.options import TrainingOptions
from service.cli.training.options import VALIDATION_IMAGES_TO_REPORT, RunOptions, progress_bar, resumable


def current_network(name: str) -> str:
    """Return the current name of a teacher network. Earlier versions had other names."""
    return TEACHERS.get(name, name)


class Teach(RunOptions, TrainingOptions):
    """Train a distillation teacher. Write its logits for the training images, and the network.

    --teacher of `skipnet train --recipe distilled` takes either file. The same command resumes a killed run.

    A short run: skipnet teach cifar10 --epochs 1 --limit 2560 --output try
    """

    dataset: CliPositionalArg[Literal["cifar10", "cifar100", "svhn"]] = Field(description="data set to train on")
    network: Annotated[Literal["small", "large"], BeforeValidator(current_network)] = Field(
        "small", description="large has twice the channels: an online teacher for training on a GPU"
    )
    output: Path | None = Field(None, description="folder of the run; default: runs/<dataset>_teacher_<network>")
    epochs: int | None = Field(None, ge=1, description="epochs; default: 12, of the large one 30")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order and augmentation")
    held_out: int = Field(
        VALIDATION_IMAGES_TO_REPORT, ge=1, description="validation images, taken from the training images"
    )

    def cli_cmd(self) -> None:
        import torch

        from models.data.datasets import find_dataset
        from models.data.source import read_source
        from models.training.distillation.location import LOGITS_FILE, TEACHER_FILE, teacher_file, teacher_folder
        from models.training.distillation.training import train_teacher
        from models.training.distributed.group import require_one_process
        from models.training.setup.hardware import choose_device

        require_one_process("teach")
        self.yield_processor()
        output = self.output or teacher_folder(Path("runs"), self.dataset, self.network)
        with resumable():
            train_teacher(
                read_source(find_dataset(self.dataset), "train", self.data),
                output,
                network=self.network,
                epochs=self.epochs,
                held_out=self.held_out,
                limit=self.limit,
                seed=self.seed,
                device=torch.device(choose_device(self.device)),
                save_every=self.save_every,
                show=progress_bar,
            )
        print(f"teacher logits: {teacher_file(output, LOGITS_FILE)}\nteacher: {teacher_file(output, TEACHER_FILE)}")
