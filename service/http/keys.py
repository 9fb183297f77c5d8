"""API keys for classification and for management of the repository.

Probes, metrics and pages need no key.
"""

import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from models.errors import UserError
from service.errors import Code, ServiceError
from service.settings import Settings

COMMENT = re.compile(r"(^|\s)#.*")


class Keys:
    """The keys that permit one kind of call. Without keys, every client may make the call.

    A request with one of ``other_keys``, which permit the other kind of call, gets 403 instead of 401.
    """

    def __init__(self, keys: Iterable[str], other_keys: Iterable[str] = (), action: str = "do this") -> None:
        self.keys = [key.encode() for key in keys]
        self.other_keys = [key.encode() for key in other_keys]
        self.action = action

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise ServiceError unauthorized or forbidden if the headers have none of the keys.

        It is a bearer token or `X-API-Key`. The names of ``headers`` are in lower case.
        """
        if not self.keys:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        text = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Starlette decodes the bytes of a header as latin-1.
        given = text.encode("latin-1")
        if is_among(given, self.keys):
            return
        if is_among(given, self.other_keys):
            raise ServiceError(Code.FORBIDDEN, f"this key may not {self.action}; send a key that may")
        problem = "the key is unknown" if given else "no key was sent"
        raise ServiceError(
            Code.UNAUTHORIZED,
            f"{problem}: send one as `Authorization: Bearer KEY` or as `X-API-Key: KEY`",
            {"WWW-Authenticate": "Bearer"},
        )


def is_among(given: bytes, keys: list[bytes]) -> bool:
    """Return whether ``given`` is one of the keys, in constant time."""
    return bool(sum(hmac.compare_digest(given, key) for key in keys))


def inference_keys(settings: Settings) -> Keys:
    """Return the keys of the calls that classify.

    Raises UserError for text that is not a key.
    """
    return Keys(keys_to_classify(settings), keys_to_manage(settings), "classify")


def management_keys(settings: Settings) -> Keys:
    """Return the keys of management calls, or else those of the calls that classify."""
    own, others = keys_to_manage(settings), keys_to_classify(settings)
    return Keys(own, others, "manage the repository") if own else Keys(others)


def keys_to_classify(settings: Settings) -> list[str]:
    return [*checked(settings.api_keys, "API key"), *read_keys(settings.api_keys_file)]


def keys_to_manage(settings: Settings) -> list[str]:
    return [*checked(settings.management_keys, "management key"), *read_keys(settings.management_keys_file)]


def checked(keys: list[str], kind: str) -> list[str]:
    """Return the keys of a setting.

    Raises UserError for a key that no client can send, with its number.
    """
    for number, key in enumerate(keys, start=1):
        if problem := problem_of(key):
            raise UserError(f"{kind} {number} of the setting {problem}; correct it or take it out")
    return keys


def read_keys(file: Path | None) -> list[str]:
    """Return the keys in a file: one per line. Blank lines and comments after a `#` that begins a word are ignored.

    Raises UserError if the file cannot be read or holds no key, and for a line that is not a key, with its number.
    """
    if file is None:
        return []
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the keys in {file} cannot be read: {error}") from error
    keys: list[str] = []
    for number, line in enumerate(lines, start=1):
        key = COMMENT.sub("", line).strip()
        if not key:
            continue
        # The message must not quote the line, which may hold a key: it goes into the log.
        if key[0] in "[]{}\"'":
            raise UserError(f"{file}, line {number}: JSON or a quoted text is no key; write one key a line, unquoted")
        if problem := "has a space in it" if len(key.split()) > 1 else problem_of(key):
            raise UserError(f"{file}, line {number} is no key: it {problem}; write one key a line, comments after #")
        keys.append(key)
    if not keys:
        raise UserError(f"{file} holds no key; write one a line, or remove the setting to allow calls without a key")
    return keys


def problem_of(key: str) -> str | None:
    """Return why no client can send a key, or None if one can."""
    if not key.strip():
        return "is empty"
    if key != key.strip() or not key.isprintable():
        return "begins or ends with a space, or has a control character in it"
    return None
