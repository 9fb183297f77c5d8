"""API keys: one set to classify with, one to manage the repository with; probes, metrics and pages stay open."""

import hmac
from pathlib import Path

from fastapi import Request

from models.errors import UserError
from service.errors import Code, ServiceError
from service.settings import Settings


class Keys:
    """Who may do something; nobody is asked where there is no key."""

    def __init__(self, keys: list[str]) -> None:
        if not all(key.strip() for key in keys):
            raise UserError("an API key is empty, which everybody has; take it out")
        self.keys = [key.encode() for key in keys]

    def check(self, request: Request) -> None:
        """Raise ServiceError unauthorized where a request has none of the keys, as a bearer token or `X-API-Key`."""
        if not self.keys:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        # Every key is compared, each in constant time: the time tells nothing of how near a guess came.
        # A header's bytes come as so many characters.
        if not sum(hmac.compare_digest(given.encode("latin-1"), key) for key in self.keys):
            raise ServiceError(
                Code.UNAUTHORIZED,
                "send a key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`",
                {"WWW-Authenticate": "Bearer"},
            )


def inference_keys(settings: Settings) -> Keys:
    return Keys([*settings.api_keys, *read_keys(settings.api_keys_file)])


def management_keys(settings: Settings) -> Keys:
    """Return the keys of management; without any of its own, those of inference guard it too."""
    own = [*settings.management_keys, *read_keys(settings.management_keys_file)]
    return Keys(own) if own else inference_keys(settings)


def read_keys(file: Path | None) -> list[str]:
    """Return the keys in a file, one a line; raises UserError where it can't be read or holds none."""
    if file is None:
        return []
    try:
        keys = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the keys in {file} can't be read: {error}") from error
    if not keys:
        raise UserError(f"{file} holds no key; write one a line, or leave the setting out to let everybody in")
    return keys
