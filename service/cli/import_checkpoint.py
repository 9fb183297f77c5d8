"""skipnet import"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.settings import Options


class Import(Options):
    """Convert weights of the public SkipNet code (torch.save or safetensors) into a checkpoint folder."""

    source: CliPositionalArg[Path] = Field(description="weights file: .pth.tar, .pth, .pt, .bin or .safetensors")
    arch: str = Field(description="trained architecture, for instance cifar10_rnn_gate_38 or imagenet_resnet_50")
    output: Path = Field(description="folder to write; <repository>/<model>/<version> is served")

    def cli_cmd(self) -> None:
        from models.checkpoint import CONFIG
        from models.data.datasets import DATASETS
        from models.importing.public_checkpoint import import_public

        config = import_public(self.source, self.arch, self.output)
        print(f"{self.output}: {config.architecture}, {len(config.labels)} classes")
        if config.labels == [str(number) for number in range(len(config.labels))]:
            print(f"labels are numbers: put the names of the classes into `labels` in {self.output / CONFIG}")
        data_set = config.architecture.split("_")[0]
        known = data_set if data_set in DATASETS else "imagefolder"
        print(f"measure it next: skipnet evaluate {self.output} --dataset {known} --data FOLDER --write")
