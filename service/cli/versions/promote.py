"""skipnet promote MODEL [VERSION]"""

from functools import partial

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.cli.versions.options import VersionChange
from service.repository.promotion import promote


class Promote(VersionChange):
    """Serve one version of a model. Versions that are published later are not served until they are promoted."""

    version: CliPositionalArg[int | None] = Field(default=None, ge=0, description="default: the newest")

    def cli_cmd(self) -> None:
        parameters = {} if self.version is None else {"version": self.version}
        self.carry_out("promote", partial(promote, version=self.version), parameters)
