"""skipnet import"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.settings import Options


class Import(Options):
    """Turn a checkpoint of the public SkipNet code (.pth.tar) into a checkpoint folder of this project."""

    source: CliPositionalArg[Path] = Field(description="the public checkpoint file")
    arch: str = Field(description="its architecture, for instance cifar10_rnn_gate_38")
    output: Path = Field(description="folder to write, <repository>/<model>/<version> to have it served")

    def cli_cmd(self) -> None:
        from models.importing.public_checkpoint import import_public

        config = import_public(self.source, self.arch, self.output)
        print(f"{self.output}: {config.architecture}, {len(config.labels)} classes")
        print("measure it next: skipnet evaluate", self.output)
