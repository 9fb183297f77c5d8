"""Load models without a request: every model at startup, and new versions as they appear in the folder."""

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from service.repository.folder import Files, Wanted, ignored, models_of, scan, wanted_files
from service.repository.loading import LoadError
from service.repository.repository import Repository

log = logging.getLogger("skipnet.repository")


class Watcher:
    """Loads a repository's models at startup. With an ``interval`` in seconds, it then loads new versions."""

    def __init__(self, repository: Repository, interval: float) -> None:
        self._repository = repository
        self._interval = interval
        self._startup: asyncio.Task[bool] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._reported: set[Path] = set()  # ignored paths that were logged

    def start(self) -> None:
        """Begin to load, without waiting."""
        self._startup = asyncio.create_task(self.load_all())
        if self._interval:
            self._watching = asyncio.create_task(self._watch_after(self._startup))

    def close(self) -> None:
        """Stop loading and watching."""
        for task in (self._startup, self._watching):
            if task is not None:
                task.cancel()

    @property
    def startup_done(self) -> bool:
        """Return whether loading at startup has ended, with or without success."""
        return self._startup is not None and self._startup.done()

    @property
    def startup_failed(self) -> bool:
        """Return whether no model was loaded at startup, so that only a request can load one."""
        startup = self._startup
        failed = startup is not None and startup.done() and not startup.cancelled() and not startup.result()
        return failed and not self._repository.loaded and not self._interval

    async def load_all(self) -> bool:
        """Load every model's usual version or an older one, the default model first. Return whether any was loaded.

        The versions of canaries and shadows follow. Failures are logged and listed in the index. The first model is the
        default even if it could not be loaded. Another model would return other labels, and replicas might differ in
        their default.
        """
        repository = self._repository
        await repository.refresh()
        folder = repository.folder
        try:
            found = await repository.in_thread(lambda: scan(folder, models_of(folder)))
            self._report(await repository.in_thread(lambda: ignored(folder)))
        except (OSError, LoadError) as error:
            log.error("nothing is served: %s cannot be read: %s", folder, error)
            return False
        if not found:
            exists = await repository.in_thread(folder.is_dir)
            log.error("%s %s", folder, "holds no <model>/<version>/ folder" if exists else "does not exist")
        repository.default = repository.default or next(iter(found), None)
        if found and repository.default not in found:
            log.error("the default model %s is not in %s, but %s", repository.default, folder, ", ".join(found))
        expected = {(name, versions[-1]) for name, versions in found.items()}
        repository.loading |= expected
        try:
            for name in sorted(found, key=lambda name: name != repository.default):
                await repository.load_usual(name)
        finally:
            repository.loading -= expected
        await repository.load_beside(found)
        return bool(repository.loaded)

    async def watch(self) -> None:
        """Load new versions until cancelled. The folder is checked every ``interval`` seconds.

        A version is loaded when its files have not changed between two checks. A version that was tried or unloaded is
        loaded again only when its files change. A folder that cannot be read is logged once and retried.
        """
        repository = self._repository
        before: dict[Wanted, Files] = {}
        trouble = ""
        while True:
            await asyncio.sleep(self._interval)
            await repository.refresh()
            folder = repository.folder
            try:
                now = await asyncio.to_thread(wanted_files, folder, repository.beside)
                self._report(await asyncio.to_thread(ignored, folder))
                if repository.problems:
                    found = await asyncio.to_thread(scan, folder)
                    repository.forget_problems(found, {name for name, _ in repository.problems})
            except (OSError, LoadError) as error:
                if str(error) != trouble:
                    log.error("new versions are not found: %s cannot be read: %s", folder, error)
                trouble = str(error)
                continue
            trouble = ""
            for (name, version, usual), files in now.items():
                if before.get((name, version, usual)) == files != repository.tried.get((name, version)):
                    with suppress(LoadError):
                        await repository.load(name, None if usual else version)
            before = now

    def _report(self, ignored_paths: dict[Path, str]) -> None:
        """Log each ignored path once, with the reason."""
        for path, reason in ignored_paths.items():
            if path not in self._reported:
                log.warning("%s is ignored: %s", path, reason)
        self._reported |= ignored_paths.keys()

    async def _watch_after(self, startup: asyncio.Task[bool]) -> None:
        # The first model loaded at startup is the default. No model must be loaded twice.
        await asyncio.wait((startup,))
        await self.watch()
