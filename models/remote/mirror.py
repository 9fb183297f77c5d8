"""Mirror a remote model repository into a local folder, which is then served like any other.

The folder ``repository`` has the versions as links to folders in ``versions``. A version's folder is complete before
its link is set, and never changes. So a reader sees either the old content or the new content.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.remote.files import RemoteError, RemoteFile, download, open_remote

SUMS = "SHA256SUMS"
"""The checksums of a version's files, in the format of the command sha256sum."""

Versions = dict[tuple[str, str], list[RemoteFile]]


class Mirror:
    """Copies the files below ``url`` into a separate folder in ``cache``. Several processes may share it."""

    def __init__(self, url: str, cache: Path) -> None:
        """Raises UserError as `open_remote`."""
        self.url = url
        self.root = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
        self.folder = self.root / "repository"
        self._source = open_remote(url)
        self._checked: set[str] = set()  # version folders whose content this process has checked

    def refresh(self) -> None:
        """Download new and changed versions, and remove those that no longer exist.

        If a version cannot be downloaded, its old content stays, and the others are downloaded. If the remote folder is
        empty or cannot be read, nothing changes. Raises RemoteError or OSError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            wanted = versions_in(self._source.files())
            if not wanted:
                raise RemoteError(f"{self.url} holds no <model>/<version>/ with its files")
            self._remove_unused()
            problems = []
            for (model, version), files in wanted.items():
                try:
                    self._fetch(self.folder / model / version, files)
                except (OSError, RemoteError) as error:
                    problems.append(f"{model}/{version}: {error}")
            for link in self.folder.glob("*/*"):
                if (link.parent.name, link.name) not in wanted:
                    link.unlink()
        if problems:
            raise RemoteError("; ".join(problems))

    def _fetch(self, link: Path, files: list[RemoteFile]) -> None:
        """Point ``link`` to a folder with these files. Download them if there is none."""
        state = "".join(f"{file.path}\n{file.size}\n{file.tag}\n" for file in files)
        complete = self.root / "versions" / hashlib.sha256(state.encode()).hexdigest()[:32]
        if not self._is_sound(complete):
            shutil.rmtree(complete, ignore_errors=True)
            partial = complete.with_name(f".{complete.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                names = [(file, file.path.rpartition("/")[2]) for file in files]
                sums = [f"{download(self._source, file, partial / name)}  {name}\n" for file, name in names]
                (partial / SUMS).write_text("".join(sums))
                partial.rename(complete)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            self._checked.add(complete.name)
        target = Path("../..") / "versions" / complete.name
        if not link.is_symlink() or link.readlink() != target:
            link.parent.mkdir(exist_ok=True)
            fresh = link.with_name(f".{link.name}.partial")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target)
            fresh.replace(link)

    def _is_sound(self, folder: Path) -> bool:
        """Return whether a version's folder exists and has its checksums. A process computes them once."""
        if folder.name in self._checked:
            return folder.is_dir()
        try:
            lines = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
            sound = all(sha256_of(folder / name) == checksum for checksum, name in lines)
        except (OSError, ValueError):
            return False
        if sound:
            self._checked.add(folder.name)
        return sound

    def _remove_unused(self) -> None:
        """Remove version folders without a link.

        Call it before links change: a model may still be loaded from a folder that has just lost its link.
        """
        used = {link.readlink().name for link in self.folder.glob("*/*") if link.is_symlink()}
        for folder in (self.root / "versions").glob("*"):
            if folder.name not in used:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock out other processes until the `with` block ends."""
        with (self.root / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def versions_in(files: list[RemoteFile]) -> Versions:
    """Return the checkpoint files of each <model>/<version>/ that has a config. Other files are left out."""
    # These modules import torch, which must not delay the binding of the server's socket.
    from models.checkpoint import CONFIG, WEIGHTS
    from models.model_repository import MODEL_NAME

    found: Versions = {}
    for file in sorted(files, key=lambda each: each.path):
        model, _, rest = file.path.partition("/")
        version, _, name = rest.partition("/")
        if MODEL_NAME.fullmatch(model) and version.isdecimal() and name in (CONFIG, WEIGHTS):
            found.setdefault((model, version), []).append(file)
    return {key: each for key, each in found.items() if any(file.path.endswith(CONFIG) for file in each)}


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def default_cache() -> Path:
    """Return the default folder of mirrors."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skipnet"
