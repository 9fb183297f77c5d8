"""skipnet export cifar10_rnn_gate_38 network.onnx"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from models import SHIPPED
from service.cli.model_argument import find_checkpoint
from service.settings import Options


class Export(Options):
    """Write a checkpoint as one ONNX file that skips blocks in any ONNX runtime."""

    model: CliPositionalArg[str] = Field(
        description="a model's name in the repository, or the folder of a model or a checkpoint"
    )
    output: CliPositionalArg[Path] = Field(description="file to write")
    model_repository: Path = Field(SHIPPED, description="folder of <model>/<version>/ checkpoints")
    version: int | None = Field(default=None, ge=0, description="version of MODEL; default: the newest")
    routing: Literal["branch", "mask"] = Field(
        "branch",
        description="branch: one image per run, skipped blocks are not computed; mask: any batch size, all computed",
    )

    def cli_cmd(self) -> None:
        from models.checkpoint import read_checkpoint
        from models.engines.onnx.export import export

        checkpoint = read_checkpoint(find_checkpoint(self.model, self.model_repository, self.version))
        export(checkpoint, self.output, self.routing)
        size = self.output.stat().st_size / 1e6
        print(f"{self.output}: {checkpoint.name} version {checkpoint.version}, {size:.1f} MB")
