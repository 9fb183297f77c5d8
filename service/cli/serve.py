"""skipnet serve"""

import sys

from service.settings import Settings


class Serve(Settings):
    """Serve the models of a repository over HTTP."""

    def cli_cmd(self) -> None:
        from service.server import serve
        from service.workers.pool import serve_with_workers

        if self.workers == 1:
            serve(self)
        sys.exit(serve_with_workers(self))
