"""skipnet promote MODEL [VERSION]"""

from functools import partial

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.cli.versions.options import VersionChange
from service.repository.promotion import promote


class Promote(VersionChange):
    """Let one version of a model answer. Versions that are published later wait for their own promotion."""

    version: CliPositionalArg[int | None] = Field(default=None, ge=0, description="default: the newest")

    def cli_cmd(self) -> None:
        parameters = {} if self.version is None else {"version": self.version}
        self.carry_out("promote", partial(promote, version=self.version), parameters)
