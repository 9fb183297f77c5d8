"""The models and versions that are served; loading one beside another and switching between two batches."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from service.errors import Code, ServiceError, not_ready
from service.repository.folder import Files, files_of, models_of, newest_files, scan, versions_of
from service.repository.loaded_model import LoadedModel
from service.repository.loading import LoadError

log = logging.getLogger("skipnet.repository")


Result = TypeVar("Result")


class State(StrEnum):
    """As the Open Inference Protocol names them."""

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
    """What lies in ``folder`` and what of it is served.

    Every method runs in the event loop; loading happens in a thread of its own, one version at a time.
    ``on_served`` and ``on_retired`` are called with a version when requests begin to get it and when the last
    one that needed it is done.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[Path], LoadedModel],
        on_loaded: Callable[[LoadedModel], None],
        on_retired: Callable[[LoadedModel], None],
        default: str | None = None,
    ) -> None:
        self.folder = folder
        self.default = default
        self.loaded: dict[str, dict[int, LoadedModel]] = {}
        self.problems: dict[tuple[str, int], str] = {}
        self.loading: set[tuple[str, int]] = set()
        self.working = False  # the thread is loading, which nothing can interrupt
        self._load = load
        self._on_loaded = on_loaded
        self._on_retired = on_retired
        self._pinned: set[tuple[str, int]] = set()  # asked for by number: a newer one does not replace it
        self._tried: dict[tuple[str, int], Files] = {}  # what the files were when they were last loaded
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._changing = asyncio.Lock()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def load_all(self) -> bool:
        """Serve of every model the newest version that can be, and return whether any could.

        What could not is logged and stands in the index. The first model is the default even where it could not:
        another in its place would answer with other labels, and differ from replica to replica.
        """
        try:
            found = await self._in_thread(lambda: scan(self.folder, models_of(self.folder)))
        except (OSError, LoadError) as error:
            log.error("nothing is served: %s can't be read: %s", self.folder, error)
            return False
        if not found:
            there = await self._in_thread(self.folder.is_dir)
            log.error("%s %s", self.folder, "holds no <model>/<version>/ folder" if there else "does not exist")
        self.default = self.default or next(iter(found), None)
        if found and self.default not in found:
            log.error("the default model %s is not in %s, but %s", self.default, self.folder, ", ".join(found))
        newest = {(name, versions[-1]) for name, versions in found.items()}
        self.loading |= newest
        try:
            for name in found:
                await self._load_newest_of(name)
        finally:
            self.loading -= newest
        return bool(self.loaded)

    async def load(self, name: str, version: int | None = None) -> LoadedModel:
        """Serve a version, or the newest one in the folder in place of an older one.

        It is loaded, verified and warmed up while the others go on; a version that fails changes nothing.
        Raises LoadError.
        """
        async with self._changing:
            found = await self._in_thread(lambda: versions_of(self.folder, name))
            self._forget({name: found}, [name])
            wanted = version if version is not None else max(found, default=None)
            if wanted is None or wanted not in found:
                raise LoadError(f"{self.folder} holds no {name}{f'/{version}' if version is not None else ''}")
            return await self._serve(name, wanted, pinned=version is not None)

    async def _load_newest_of(self, name: str) -> None:
        async with self._changing:
            try:
                versions = await self._in_thread(lambda: versions_of(self.folder, name))
            except LoadError as error:
                log.error("%s is not served: %s", name, error)
                return
            for version in reversed(versions):
                if version in self.loaded.get(name, ()):  # A request asked for it meanwhile.
                    return
                with suppress(LoadError):
                    await self._serve(name, version)
                    return

    async def _serve(self, name: str, version: int, pinned: bool | None = None) -> LoadedModel:
        """Load a version and give it the requests; raises LoadError, which it has logged.

        It is pinned, or no longer, or as it was.
        """
        key, folder = (name, version), self.folder / name / str(version)
        self.loading.add(key)
        try:
            self._tried[key] = await self._in_thread(lambda: files_of(folder))
            model = await self._in_thread(lambda: self._load(folder))
        except Exception as error:
            self.problems[key] = str(error)
            log.error("%s/%d is not served: %s", name, version, error)
            # Out of memory on a device, say: the version is at fault, not the server.
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
        log.info("serving %s with %s on %s", model, model.engine.name, model.engine.device)
        return model

    async def watch(self, interval: float) -> None:
        """Serve what appears in the folder, looking every ``interval`` seconds, until cancelled.

        A version is loaded once its files are the same in two looks. What was tried or unloaded comes back only
        when its files change. A folder that can't be read is logged once, and looked at again.
        """
        before: dict[tuple[str, int], Files] = {}
        trouble = ""
        while True:
            await asyncio.sleep(interval)
            try:
                now = await asyncio.to_thread(newest_files, self.folder)
                if self.problems:
                    self._forget(await asyncio.to_thread(scan, self.folder), {name for name, _ in self.problems})
            except (OSError, LoadError) as error:
                if str(error) != trouble:
                    log.error("no new version is seen: %s can't be read: %s", self.folder, error)
                trouble = str(error)
                continue
            trouble = ""
            for (name, version), files in now.items():
                if before.get((name, version)) == files != self._tried.get((name, version)):
                    with suppress(LoadError):
                        await self.load(name)
            before = now

    @property
    def failed(self) -> int:
        """How many models' newest versions could not be loaded: an older one is served in their place, or none, or what
        was there before its files were replaced.
        """
        failed = {name for name, version in self.problems if version >= max(self.loaded.get(name, ()), default=-1)}
        return len(failed)

    def _forget(self, found: Mapping[str, list[int]], names: Collection[str]) -> None:
        """Forget what was wrong with versions of ``names`` that are not in the folder any more."""
        for name, version in [key for key in self.problems if key[0] in names]:
            if version not in found.get(name, ()):
                del self.problems[name, version]

    async def unload(self, name: str, version: int | None = None) -> None:
        """Serve a version, or every version of a model, no more; raises LoadError where it isn't served."""
        async with self._changing:
            versions = self.loaded.get(name, {})
            if not versions or (version is not None and version not in versions):
                raise LoadError(f"{name}{f'/{version}' if version is not None else ''} is not served")
            for model in [versions[version]] if version is not None else list(versions.values()):
                self._pinned.discard((name, model.version))
                del versions[model.version]
                self._retire(model)
                log.info("%s is served no more", model)
            if not versions:
                del self.loaded[name]
                # It is wanted no more: that a newer version could not be loaded is no trouble now.
                self._forget({}, {name})

    def resolve(self, name: str | None, version: int | None) -> LoadedModel:
        """Return what answers a request; raises ServiceError model_not_found, or not_ready where it is being loaded or
        could not be.
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
                f"the default model {wanted} is not loaded; GET /models says why where it lies in the repository, and "
                f"POST /v2/repository/models/{wanted}/load loads it"
            )
        if any(wanted == failed and version in (None, number) for failed, number in self.problems):
            raise not_ready(f"{wanted} could not be loaded; GET /models says why")
        raise ServiceError(
            Code.MODEL_NOT_FOUND,
            f"no model {wanted!r}{'' if version is None else f' version {version}'} is served; "
            "GET /models lists what is, and what could be loaded",
        )

    @contextmanager
    def lease(self, name: str | None, version: int | None) -> Iterator[LoadedModel]:
        """Keep what answers a request from being closed until the request is done."""
        model = self.resolve(name, version)
        model.leases += 1
        try:
            yield model
        finally:
            model.leases -= 1
            if model.retired and not model.leases:
                self._on_retired(model)

    async def index(self) -> list[Entry]:
        """Return every version in the folder and every one that is served.

        What is served is told even where the folder can't be read, which is logged.
        """
        known = set(self.loading) | set(self.problems)
        known |= {(name, version) for name, versions in self.loaded.items() for version in versions}
        try:
            in_folder = await asyncio.to_thread(scan, self.folder)
        except (OSError, LoadError) as error:
            log.error("the index lacks what is not served: %s can't be read: %s", self.folder, error)
        else:
            known |= {(name, version) for name, versions in in_folder.items() for version in versions}
        return [self._entry(name, version) for name, version in sorted(known)]

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        def run() -> Result:
            self.working = True
            try:
                return work()
            finally:
                self.working = False

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _entry(self, name: str, version: int) -> Entry:
        problem = self.problems.get((name, version), "")
        if version in self.loaded.get(name, {}):
            return Entry(name, version, State.READY, problem)
        if (name, version) in self.loading:
            return Entry(name, version, State.LOADING)
        return Entry(name, version, State.UNAVAILABLE, problem or "not loaded")

    def _switch(self, model: LoadedModel) -> None:
        """Give new requests ``served``; requests that hold an older one keep it."""
        versions = self.loaded.setdefault(model.name, {})
        replaced = versions.pop(model.version, None)
        versions[model.version] = model
        self._on_loaded(model)
        others: list[int] = []
        if (model.name, model.version) not in self._pinned:
            # A newer one among them is in the folder no more: it was moved away, to go back to this one.
            others = [v for v in versions if v != model.version and (model.name, v) not in self._pinned]
        for old in [replaced, *(versions.pop(v) for v in others)]:
            if old is not None:
                self._retire(old)

    def _retire(self, model: LoadedModel) -> None:
        model.retired = True
        if not model.leases:
            self._on_retired(model)
