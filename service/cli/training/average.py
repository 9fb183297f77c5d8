"""skipnet average"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.settings import Options


class Average(Options):
    """Write a model soup: the mean of several checkpoints' weights.

    If they were trained from the same checkpoint, it is often more accurate than each of them, and as fast.
    """

    output: CliPositionalArg[Path] = Field(description="folder to write the checkpoint to")
    checkpoints: CliPositionalArg[list[Path]] = Field(description="two or more checkpoint folders")

    def cli_cmd(self) -> None:
        from models.training.soup import make_soup

        make_soup(self.checkpoints, self.output)
        print(f"{self.output}: the mean of {len(self.checkpoints)} checkpoints; measure it with skipnet evaluate")
