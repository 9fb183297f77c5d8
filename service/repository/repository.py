"""Load, switch and unload the versions of models."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from models.errors import UserError
from service.errors import Code, ServiceError, not_ready
from service.repository.folder import Files, current_snapshot, files_of, scan, versions_of
from service.repository.loaded_model import LoadedModel
from service.repository.loading import LoadError

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


class Repository:
    """The versions in ``folder`` and the loaded ones.

    Every method runs in the event loop. Versions are loaded in a thread, one at a time. ``on_loaded`` is called with a
    model when new requests begin to use it. ``on_retired`` is called when its last request has ended. ``refresh``
    updates the folder if it is a copy of another.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[Path], LoadedModel],
        on_loaded: Callable[[LoadedModel], None],
        on_retired: Callable[[LoadedModel], None],
        default: str | None = None,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        self._folder = folder
        self._refresh = refresh
        self._stale = ""  # why the last refresh failed
        self.default = default  # the model of requests that name none
        self.loaded: dict[str, dict[int, LoadedModel]] = {}  # by name and version
        self.loading: set[tuple[str, int]] = set()
        self.problems: dict[tuple[str, int], str] = {}  # why the last load of a version failed
        self.tried: dict[tuple[str, int], Files] = {}  # a version's files when it was last loaded
        self._load = load
        self._on_loaded = on_loaded
        self._on_retired = on_retired
        self._pinned: set[tuple[str, int]] = set()  # loaded by number: a newer version does not replace it
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
        """Load a version by number beside the others, or the newest version in place of an older one.

        The others are served in the meantime. If the load fails, nothing changes.

        Raises LoadError.
        """
        await self.refresh()
        async with self._changing:
            found = await self.in_thread(lambda: versions_of(self.folder, name))
            self.forget_problems({name: found}, [name])
            number = version if version is not None else max(found, default=None)
            if number is None or number not in found:
                raise LoadError(f"{self.folder} holds no {name}{f'/{version}' if version is not None else ''}")
            return await self._load_version(name, number, pinned=version is not None)

    async def load_newest_loadable(self, name: str) -> None:
        """Load a model's newest version, or the next older one that can be loaded. Failures are logged."""
        async with self._changing:
            try:
                versions = await self.in_thread(lambda: versions_of(self.folder, name))
            except LoadError as error:
                log.error("%s is not served: %s", name, error)
                return
            for version in reversed(versions):
                if version in self.loaded.get(name, ()):  # A request has loaded it in the meantime.
                    return
                with suppress(LoadError):
                    await self._load_version(name, version)
                    return

    async def unload(self, name: str, version: int | None = None) -> None:
        """Unload a version, or every version of a model.

        Raises LoadError if it is not loaded.
        """
        async with self._changing:
            versions = self.loaded.get(name, {})
            if not versions or (version is not None and version not in versions):
                raise LoadError(f"{name}{f'/{version}' if version is not None else ''} is not served")
            for model in [versions[version]] if version is not None else list(versions.values()):
                self._pinned.discard((name, model.version))
                del versions[model.version]
                self._retire(model)
                log.info("%s is no longer served", model)
            if not versions:
                del self.loaded[name]
                # The model is unloaded, so a newer version that failed to load is no longer a problem.
                self.forget_problems({}, {name})

    def resolve(self, name: str | None, version: int | None) -> LoadedModel:
        """Return the model for a request: by default the newest loaded version of the default model.

        Raises ServiceError not_ready if it is being loaded or could not be loaded, else model_not_found.
        """
        wanted = name if name is not None else self.default
        if wanted is None:
            raise not_ready("no model is loaded yet; GET /health/ready says why")
        versions = self.loaded.get(wanted, {})
        if version is not None and version in versions:
            return versions[version]
        if version is None and versions:
            return versions[max(versions)]
        if any(wanted == loading and version in (None, number) for loading, number in self.loading):
            raise not_ready(f"{wanted} is being loaded; try again")
        if name is None and not versions:
            raise not_ready(
                f"the default model {wanted} is not loaded; GET /models says why if it is in the repository, and "
                f"POST /v2/repository/models/{wanted}/load loads it"
            )
        if any(wanted == failed and version in (None, number) for failed, number in self.problems):
            raise not_ready(f"{wanted} could not be loaded; GET /models says why")
        raise ServiceError(
            Code.MODEL_NOT_FOUND,
            f"no model {wanted!r}{'' if version is None else f' version {version}'} is served; "
            "GET /models lists the models that are, and those that could be loaded",
        )

    @contextmanager
    def lease(self, name: str | None, version: int | None) -> Iterator[LoadedModel]:
        """Yield the model for a request. It is not closed before the `with` block ends.

        Raises as `resolve` does.
        """
        model = self.resolve(name, version)
        model.leases += 1
        try:
            yield model
        finally:
            model.leases -= 1
            if model.retired and not model.leases:
                self._on_retired(model)

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

    @property
    def failed(self) -> int:
        """The number of models whose newest version could not be loaded. An older version is served, or none."""
        return len({name for name, version in self.problems if version >= max(self.loaded.get(name, ()), default=-1)})

    def forget_problems(self, found: Mapping[str, list[int]], names: Collection[str]) -> None:
        """Remove the problems of versions of ``names`` that are not in ``found``, those in the folder."""
        for name, version in [key for key in self.problems if key[0] in names]:
            if version not in found.get(name, ()):
                del self.problems[name, version]

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
            self.tried[key] = await self.in_thread(lambda: files_of(folder))
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
            self._pinned.add(key)
        elif pinned is not None:
            self._pinned.discard(key)
        self._switch(model)
        self.default = self.default or name
        log.info("serving %s with %s on %s", model, model.engine.name, model.device)
        return model

    def _switch(self, model: LoadedModel) -> None:
        """Use a model for new requests. Requests with an older version keep it."""
        versions = self.loaded.setdefault(model.name, {})
        replaced = versions.pop(model.version, None)
        versions[model.version] = model
        self._on_loaded(model)
        others: list[int] = []
        if (model.name, model.version) not in self._pinned:
            # If one of them is newer, it was removed from the folder to roll back to this version.
            others = [v for v in versions if v != model.version and (model.name, v) not in self._pinned]
        for old in [replaced, *(versions.pop(v) for v in others)]:
            if old is not None:
                self._retire(old)

    def _retire(self, model: LoadedModel) -> None:
        model.retired = True
        if not model.leases:
            self._on_retired(model)

    def _entry(self, name: str, version: int) -> Entry:
        problem = self.problems.get((name, version), "")
        if version in self.loaded.get(name, {}):
            return Entry(name, version, State.READY, problem)
        if (name, version) in self.loading:
            return Entry(name, version, State.LOADING)
        return Entry(name, version, State.UNAVAILABLE, problem or "not loaded")
