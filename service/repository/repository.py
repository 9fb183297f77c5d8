"""Load, switch and unload the versions of models."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from models.errors import UserError
from service.repository.folder import Beside, Files, current_snapshot, files_of, scan, versions_of
from service.repository.loaded_model import LoadedModel
from service.repository.loaded_versions import LoadedVersions
from service.repository.loading import LoadError
from service.repository.promotion import Change, read_history, usual_version, write_history

log = logging.getLogger("skipnet.repository")

Result = TypeVar("Result")


class State(StrEnum):
    """The state of a version in the terms of the Open Inference Protocol."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class Entry:
    """A version in the repository's index."""

    name: str
    version: int
    state: State
    reason: str = ""


class Repository(LoadedVersions):
    """The versions in ``folder`` and the loaded ones.

    Every method runs in the event loop. Versions are loaded in a thread, one at a time. ``refresh`` updates the folder
    if it is a copy of another. The other arguments are those of `LoadedVersions`.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[Path], LoadedModel],
        on_loaded: Callable[[LoadedModel], None],
        on_retired: Callable[[LoadedModel], None],
        default: str | None = None,
        refresh: Callable[[], None] | None = None,
        beside: Beside | None = None,
    ) -> None:
        super().__init__(on_loaded, on_retired, default, beside)
        self._folder = folder
        self._refresh = refresh
        self._stale = ""  # why the last refresh failed
        self.tried: dict[tuple[str, int], Files] = {}  # a version's files when it was last loaded
        self._load = load
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._changing = asyncio.Lock()

    @property
    def folder(self) -> Path:
        """The folder with the models. It changes if it is the current snapshot of a hub's cache."""
        return current_snapshot(self._folder)

    async def refresh(self) -> None:
        """Update the folder if it is a copy. If that fails, log it once and keep the folder."""
        if self._refresh is None:
            return
        try:
            await asyncio.to_thread(self._refresh)
        except (OSError, UserError) as error:
            if str(error) != self._stale:
                log.error("the models are not updated: %s", error)
            self._stale = str(error)
        else:
            self._stale = ""

    def close(self) -> None:
        """End the loading thread after its current load, which cannot be interrupted."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def load(self, name: str, version: int | None = None) -> LoadedModel:
        """Load a version by number beside the others, or the usual version in place of the one before.

        The others are served in the meantime. If the load fails, nothing changes.

        Raises LoadError.
        """
        await self.refresh()
        async with self._changing:
            found = await self.in_thread(lambda: versions_of(self.folder, name))
            self.forget_problems({name: found}, [name])
            if version is not None:
                return await self._load_version(name, self._existing(name, version, found), pinned=True)
            history = await self._history(name)
            usual = usual_version(history, found, self.beside.get(name, ()))
            model = await self._load_version(name, self._existing(name, usual, found), pinned=False)
            self.note_promotion(name, history)
            self._forget_tried(name, model.version)
            return model

    def _forget_tried(self, name: str, version: int) -> None:
        """Remove the record of the files of a model's other versions, so that they are loaded again when they are the
        usual one.
        """
        kept = {version, *self.beside.get(name, ())}
        self.tried = {key: files for key, files in self.tried.items() if key[0] != name or key[1] in kept}

    def _existing(self, name: str, version: int | None, found: Collection[int]) -> int:
        """Return a version that is among those ``found`` in the folder. Raises LoadError."""
        if version is None or version not in found:
            raise LoadError(f"{self.folder} holds no {name}{f'/{version}' if version is not None else ''}")
        return version

    async def _history(self, name: str) -> list[int]:
        """Return a model's promotions. Raises LoadError."""
        return await self.in_thread(lambda: read_history(self.folder / name))

    async def load_usual(self, name: str) -> None:
        """Load a model's usual version, or the next older one that can be loaded. Failures are logged."""
        async with self._changing:
            try:
                versions = await self.in_thread(lambda: versions_of(self.folder, name))
                history = await self._history(name)
            except LoadError as error:
                log.error("%s is not served: %s", name, error)
                return
            self.note_promotion(name, history)
            usual = usual_version(history, versions, self.beside.get(name, ()))
            if usual is not None and usual not in versions:
                log.error("the promoted version %s/%d is not in the folder", name, usual)
            older = [version for version in versions if usual is not None and version <= usual]
            for version in reversed(older):
                if version in self.loaded.get(name, ()):  # A request has loaded it in the meantime.
                    return
                with suppress(LoadError):
                    await self._load_version(name, version)
                    return

    async def load_beside(self, found: Mapping[str, Collection[int]]) -> None:
        """Load the versions of canaries and shadows that are in ``found``, those in the folder. Failures are logged."""
        for name, versions in self.beside.items():
            for version in sorted(versions):
                if version not in found.get(name, ()):
                    log.error("%s/%d, of a canary or a shadow, is not in the folder", name, version)
                elif version not in self.loaded.get(name, ()):
                    with suppress(LoadError):
                        await self.load(name, version)

    async def change_promotions(self, name: str, change: Change) -> tuple[int, int | None]:
        """Change a model's promotions, serve the resulting version, and return it and the one served before.

        If the version cannot be loaded or the promotions cannot be written, nothing changes. Raises LoadError.
        """
        if self._refresh is not None:
            raise LoadError(
                "a remote model repository has no promotions: publish the version again, under a higher number"
            )
        async with self._changing:
            folder = self.folder / name
            found = await self.in_thread(lambda: versions_of(self.folder, name))
            written = await self._history(name)
            history = change(written, found)
            number = self._existing(name, usual_version(history, found, self.beside.get(name, ())), found)
            before = self.usual(name)
            model = self.loaded.get(name, {}).get(number)
            fresh = model is None
            if model is None:
                model = await self._load_version(name, number, pinned=True)
            try:
                if history != written:
                    await self.in_thread(lambda: write_history(folder, history))
            except LoadError:
                if fresh:
                    self.remove(model)
                raise
            self.tried[name, number] = await self.in_thread(lambda: files_of(folder / str(number)))
            self.note_promotion(name, history)
            self.pinned.discard((name, number))
            self._forget_tried(name, number)
            self.retire_others(model)
            return number, None if before is None else before.version

    async def unload(self, name: str, version: int | None = None) -> None:
        """Unload a version, or every version of a model.

        Raises LoadError if it is not loaded.
        """
        async with self._changing:
            versions = self.loaded.get(name, {})
            if not versions or (version is not None and version not in versions):
                raise LoadError(f"{name}{f'/{version}' if version is not None else ''} is not served")
            for model in [versions[version]] if version is not None else list(versions.values()):
                self.remove(model)
            if not versions:
                # The model is unloaded, so a newer version that failed to load is no longer a problem.
                self.forget_problems({}, {name})

    async def index(self) -> list[Entry]:
        """Return every version that is in the folder, loaded, or failed.

        If the folder cannot be read, log it and leave out the versions that are not loaded.
        """
        known = set(self.loading) | set(self.problems)
        known |= {(name, version) for name, versions in self.loaded.items() for version in versions}
        try:
            in_folder = await asyncio.to_thread(scan, self.folder)
        except (OSError, LoadError) as error:
            log.error("the index lists loaded versions only: %s cannot be read: %s", self.folder, error)
        else:
            known |= {(name, version) for name, versions in in_folder.items() for version in versions}
        return [self._entry(name, version) for name, version in sorted(known)]

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Return the result of ``work``, run in the loading thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _load_version(self, name: str, version: int, pinned: bool | None = None) -> LoadedModel:
        """Load a version for new requests. With ``pinned`` None, it stays pinned or not.

        Raises LoadError, after logging it.
        """
        key, folder = (name, version), self.folder / name / str(version)
        self.loading.add(key)
        try:
            self.tried[key] = await self.in_thread(lambda: files_of(folder, promoted=not pinned))
            model = await self.in_thread(lambda: self._load(folder))
        except Exception as error:
            self.problems[key] = str(error)
            log.error("%s/%d is not served: %s", name, version, error)
            # Any error, such as a lack of device memory, is an error of the version, not of the server.
            raise error if isinstance(error, LoadError) else LoadError(f"{folder}: {error}") from error
        finally:
            self.loading.discard(key)
        self.problems.pop(key, None)
        if pinned:
            self.pinned.add(key)
        elif pinned is not None:
            self.pinned.discard(key)
        self.put(model)
        self.default = self.default or name
        log.info("serving %s with %s on %s", model, model.engine.name, model.device)
        return model

    def _entry(self, name: str, version: int) -> Entry:
        problem = self.problems.get((name, version), "")
        if version in self.loaded.get(name, {}):
            return Entry(name, version, State.READY, problem)
        if (name, version) in self.loading:
            return Entry(name, version, State.LOADING)
        return Entry(name, version, State.UNAVAILABLE, problem or "not loaded")
