"""skipnet import"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.settings import Options


class Import(Options):
    """Convert a pretrained ResNet or SkipNet into a checkpoint folder."""

    source: CliPositionalArg[str] = Field(
        description="weights file of torchvision, timm or the public SkipNet code; folder of timm or transformers; "
        "or hf://ORG/NAME, s3://…, gs://…, https://…"
    )
    arch: str | None = Field(
        default=None,
        description="trained architecture, for weights of the public SkipNet code, for instance cifar10_rnn_gate_38; "
        "other networks are recognised",
    )
    labels: Path | None = Field(
        default=None, description="text file with the name of one class in each line, in the order of the outputs"
    )
    output: Path = Field(description="folder to write; <repository>/<model>/<version> is served")

    def cli_cmd(self) -> None:
        from models.checkpoint import CONFIG
        from models.data.datasets import DATASETS
        from models.importing.source import import_source

        config = import_source(self.source, self.output, self.arch, self.read_labels())
        print(f"{self.output}: {config.architecture}, {len(config.labels)} classes")
        if config.labels == [str(number) for number in range(len(config.labels))]:
            print(f"labels are numbers: write the names of the classes into `labels` in {self.output / CONFIG}")
        spec = config.input
        print(
            f"images: shorter side {spec.resize}, crop {spec.height}x{spec.width}, {spec.interpolation}; "
            f"check `input` in {self.output / CONFIG}"
        )
        data_set = config.architecture.split("_")[0]
        known = data_set if data_set in DATASETS else "imagefolder"
        print(f"measure it next: skipnet evaluate {self.output} --dataset {known} --data FOLDER --write")

    def read_labels(self) -> list[str] | None:
        """Return the lines of the labels file."""
        from models.errors import UserError

        if self.labels is None:
            return None
        try:
            return self.labels.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"--labels {self.labels} cannot be read: {error}") from error
