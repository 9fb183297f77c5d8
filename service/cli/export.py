"""skipnet export cifar10_rnn_gate_38 network.onnx"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from models import SHIPPED
from models.errors import UserError
from service.settings import Options


class Export(Options):
    """Write a checkpoint as one self-contained ONNX file that skips blocks in any ONNX runtime."""

    model: CliPositionalArg[str] = Field(
        description="a model's name in the repository, or the folder of a model or a checkpoint"
    )
    output: CliPositionalArg[Path] = Field(description="file to write")
    model_repository: Path = Field(SHIPPED, description="folder of <model>/<version>/ checkpoints")
    version: int | None = Field(default=None, ge=0, description="of a model by name; default: the newest")
    routing: Literal["branch", "mask"] = Field(
        "branch",
        description="branch: one image a run, skipped blocks are not run; mask: any batch, every block is run",
    )

    def cli_cmd(self) -> None:
        from models.checkpoint import CONFIG, find_version, read_checkpoint
        from models.engines.onnx.export import export

        folder = Path(self.model)
        if not (folder / CONFIG).is_file():
            path = len(folder.parts) > 1 and folder.is_dir()
            among, name = (folder.parent, folder.name) if path else (self.model_repository, self.model)
            folder = find_version(among, name, self.version)
        elif self.version is not None:
            raise UserError(f"{folder} is a version's folder: leave --version out, or name the model in its place")
        checkpoint = read_checkpoint(folder)
        export(checkpoint, self.output, self.routing)
        size = self.output.stat().st_size / 1e6
        print(f"{self.output}: {checkpoint.name} version {checkpoint.version}, {size:.1f} MB")
