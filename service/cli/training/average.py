"""skipnet average"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.settings import Options


class Average(Options):
    """Write the mean of several checkpoints' weights, for networks that were trained on from the same one: often better
    than each of them, and as fast.
    """

    output: CliPositionalArg[Path] = Field(description="folder to write the checkpoint to")
    checkpoints: CliPositionalArg[list[Path]] = Field(description="checkpoints' folders, two or more")

    def cli_cmd(self) -> None:
        from models.training.soup import make_soup

        make_soup(self.checkpoints, self.output)
        print(f"{self.output}: the mean of {len(self.checkpoints)} checkpoints; measure it with skipnet evaluate")
