"""skipnet rollback MODEL"""

from service.cli.versions.options import VersionChange
from service.repository.promotion import roll_back


class Rollback(VersionChange):
    """Serve the version of a model that was promoted before, or else the previous version in the folder."""

    def cli_cmd(self) -> None:
        self.carry_out("rollback", roll_back, {})
