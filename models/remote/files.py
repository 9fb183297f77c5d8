"""List and read the files below a remote prefix: s3://BUCKET/PATH, gs://BUCKET/PATH or hf://ORG/NAME[@REVISION][/PATH]."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from models.errors import UserError, needs_extra

CHUNK = 1 << 20
"""Bytes."""
RETRY = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
"""Limits of one request."""
REMOTE = re.compile(r"(s3|gs|hf):/+(.+)")
MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class RemoteError(UserError):
    """A remote prefix cannot be read, or a file is not as announced."""


@dataclass(frozen=True)
class RemoteFile:
    """A file below a prefix.

    ``tag`` changes with its content. ``checksum`` is the name of a hash function and the content's hash, if the remote
    side sends one. "blob" is git's hash.
    """

    path: str
    size: int
    tag: str
    checksum: tuple[str, str] | None = None


class RemoteFolder(Protocol):
    """The files below a prefix. Both methods raise RemoteError."""

    def files(self) -> list[RemoteFile]: ...

    def chunks(self, file: RemoteFile) -> Iterator[bytes]: ...


def remote_url(path: Path) -> str | None:
    """Return the URL that a setting names, or None for a local path.

    A path joins the slashes of a URL into one.
    """
    found = REMOTE.fullmatch(path.as_posix())
    return f"{found[1]}://{found[2]}" if found else None


def open_remote(url: str) -> RemoteFolder:
    """Return the files below ``url``.

    Raises UserError if the packages are missing or the URL is wrong.
    """
    with needs_extra("remote", url):
        return Hub(url) if url.startswith("hf://") else Bucket(url)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Raise RemoteError for any error of the libraries, which have no common class."""
    try:
        yield
    except RemoteError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RemoteError(
            f"{url} cannot be read: {reason}; check the address, the network and the credentials"
        ) from error


def store_options() -> dict[str, Any]:
    """Return obstore's options of an object store, which may be reached without TLS if the user's address says so."""
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return {"client_options": {"allow_http": plain}, "retry_config": RETRY}


class Bucket:
    """A prefix on S3 or Google Cloud Storage. Credentials are those of the variables AWS_… and GOOGLE_…."""

    def __init__(self, url: str) -> None:
        from obstore.store import from_url

        self.url = url
        with explained(url):
            self._store: Any = from_url(url, **store_options())

    def files(self) -> list[RemoteFile]:
        with explained(self.url):
            return [self._file(entry) for part in self._store.list() for entry in part]

    def chunks(self, file: RemoteFile) -> Iterator[bytes]:
        with explained(f"{self.url}/{file.path}"):
            for part in self._store.get(file.path).stream(min_chunk_size=CHUNK):
                yield bytes(part)

    def _file(self, entry: Any) -> RemoteFile:
        tag = entry["e_tag"] or str(entry["last_modified"])
        found = MD5.fullmatch(tag) if self.url.startswith("s3://") else None
        return RemoteFile(entry["path"], entry["size"], tag, ("md5", found[1]) if found else None)


class Hub:
    """A repository of the Hugging Face hub, at a revision. The variables HF_ENDPOINT and HF_TOKEN apply."""

    def __init__(self, url: str) -> None:
        from huggingface_hub import HfApi

        found = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?", url)
        if found is None:
            raise UserError(
                f"{url} is not an address of the hub: write hf://ORG/NAME, hf://ORG/NAME@REVISION or …/PATH"
            )
        self.url = url
        self._name, self._revision, self._path = found[1], found[2], (found[3] or "").strip("/")
        self._api: Any = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        self._commit = ""

    def files(self) -> list[RemoteFile]:
        with explained(self.url):
            self._commit = self._api.repo_info(self._name, revision=self._revision).sha
            entries = self._api.list_repo_tree(self._name, self._path or None, recursive=True, revision=self._commit)
            return [self._file(entry) for entry in entries if hasattr(entry, "blob_id")]

    def chunks(self, file: RemoteFile) -> Iterator[bytes]:
        import httpx
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        with explained(f"{self.url}/{file.path}"):
            path = f"{self._path}/{file.path}" if self._path else file.path
            url = hf_hub_url(self._name, path, revision=self._commit, endpoint=self._api.endpoint)
            with httpx.stream("GET", url, headers=build_hf_headers(), follow_redirects=True, timeout=60) as response:
                yield from response.raise_for_status().iter_bytes(CHUNK)

    def _file(self, entry: Any) -> RemoteFile:
        path = entry.path.removeprefix(f"{self._path}/") if self._path else entry.path
        checksum = ("sha256", entry.lfs.sha256) if entry.lfs else ("blob", entry.blob_id)
        return RemoteFile(path, entry.size, entry.blob_id, checksum)


def download(source: RemoteFolder, file: RemoteFile, target: Path) -> str:
    """Write a file to ``target`` and return its SHA-256.

    Raises RemoteError if its size or checksum differs from that of the remote side.
    """
    checksum, name = _write(source, file, target)
    if file.checksum is None or file.checksum[1] in checksum.values():
        return checksum["sha256"]
    # The tag of an object that S3 encrypts with a key looks like an MD5 hash but is not one. Then the file is accepted
    # if a second download is equal.
    if file.checksum[0] == "md5" and _write(source, file, target)[0] == checksum:
        return checksum["sha256"]
    raise RemoteError(f"{name} is damaged: its checksum is not {' '.join(file.checksum)}")


def _write(source: RemoteFolder, file: RemoteFile, target: Path) -> tuple[dict[str, str], str]:
    """Write a file, and return its hashes by the name of the function, and its path."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in ("sha256", "md5")}
    hashes["blob"] = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    size = 0
    with target.open("wb") as opened:
        for chunk in source.chunks(file):
            size += len(chunk)
            if size > file.size:
                break
            opened.write(chunk)
            for each in hashes.values():
                each.update(chunk)
        opened.flush()
        os.fsync(opened.fileno())
    if size != file.size:
        raise RemoteError(f"{file.path} is incomplete: {size} of {file.size} bytes")
    return {name: each.hexdigest() for name, each in hashes.items()}, file.path
