"""skipnet teach"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.cli.training.options import HELD_OUT_TO_REPORT, TrainingOptions, progress_bar


class Teach(TrainingOptions):
    """Train a wide network, which serves nobody, and write its answers to the training images, and itself: --teacher of
    recipe taught learns from either. Killed, it goes on where it was.

    A try on a CPU: skipnet teach cifar10 --epochs 1 --limit 2560 --output try
    """

    dataset: CliPositionalArg[Literal["cifar10", "cifar100", "svhn"]] = Field(description="data set to train on")
    network: Literal["wide", "wider"] = Field(
        "wide", description="wider is twice as wide: a GPU asks it about each image as it is augmented"
    )
    output: Path | None = Field(None, description="folder of the run; default: runs/<dataset>_<network>")
    epochs: int | None = Field(None, ge=1, description="epochs; default: 12, of the wider one 30")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order and augmentation")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    held_out: int = Field(HELD_OUT_TO_REPORT, ge=1, description="training images kept apart to measure on")

    def cli_cmd(self) -> None:
        import torch

        from models.data.datasets import find_dataset
        from models.data.source import read_source
        from models.training.distillation.logits import ANSWERS
        from models.training.distillation.teacher import NETWORK, teach
        from models.training.job import choose_device

        self.yield_processor()
        output = self.output or Path("runs") / f"{self.dataset}_{self.network}"
        teach(
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
        print(f"answers: {output / ANSWERS}\nnetwork: {output / NETWORK}")
