"""The shared part of `skipnet promote` and `skipnet rollback`: change a folder, or call a running service."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from models import SHIPPED
from models.errors import UserError
from models.remote.files import remote_url
from service.repository.promotion import Change, read_history, usual_version, write_history
from service.settings import Options


class VersionChange(Options):
    """A change of the version that is served."""

    model: CliPositionalArg[str] = Field(description="name of the model")
    model_repository: Path = Field(default=SHIPPED, description="folder of checkpoints: <model>/<version>/")
    server: str | None = Field(
        default=None,
        description="address of a running service, such as http://127.0.0.1:8000, which loads the version and changes "
        "its own repository; default: change the folder",
    )
    management_key: str | None = Field(default=None, repr=False, description="key for --server, if it needs one")

    def carry_out(self, verb: str, change: Change, parameters: dict[str, int]) -> None:
        """Make the change in the folder or by the management call ``verb``, and print the result. Raises UserError."""
        if self.server is None:
            version, before = self.change_folder(change)
            place = f"services that watch {self.model_repository} (--watch-interval) load it, others when they start"
        else:
            version, before = self.call(self.server, verb, parameters)
            place = f"{self.server} serves it"
        after = f" in place of {before}" if before is not None and before != version else ""
        print(f"{self.model}/{version} is promoted{after}; {place}")

    def change_folder(self, change: Change) -> tuple[int, int | None]:
        """Change the promotions in the repository. Return the version that is served now and the one before."""
        from models.model_repository import versions

        if remote_url(self.model_repository) is not None:
            raise UserError(
                f"{self.model_repository} is remote and has no promotions: publish the version again, under a "
                "higher number"
            )
        folder, found = self.model_repository / self.model, versions(self.model_repository, self.model)
        history = read_history(folder)
        changed = change(history, found)
        write_history(folder, changed)
        return changed[-1], usual_version(history, found)

    def call(self, server: str, verb: str, parameters: dict[str, int]) -> tuple[int, int | None]:
        """Make the same change by a management call."""
        import httpx

        headers = {"X-API-Key": self.management_key} if self.management_key else {}
        url = f"{server.rstrip('/')}/v2/repository/models/{self.model}/{verb}"
        try:
            response = httpx.post(url, json={"parameters": parameters}, headers=headers, timeout=None)
            content = response.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise UserError(f"{server} does not respond as a service: {error}; check --server") from error
        if response.is_error:
            raise UserError(f"{server}: {content.get('error', content)}")
        return int(content["version"]), None if content["before"] is None else int(content["before"])
