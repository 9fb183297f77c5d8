"""skipnet rollback MODEL"""

from service.cli.versions.options import VersionChange
from service.repository.promotion import roll_back


class Rollback(VersionChange):
    """Let the version of a model answer that was promoted before, or else the version before in the folder."""

    def cli_cmd(self) -> None:
        self.carry_out("rollback", roll_back, {})
