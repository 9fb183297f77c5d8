"""skipnet serve"""

import sys

from service.settings import Settings


class Serve(Settings):
    """Serve the models of a repository over HTTP."""

    def cli_cmd(self) -> None:
        from service.server import serve

        sys.exit(serve(self))
