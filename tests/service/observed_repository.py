"""A repository for tests: it reads real checkpoints, shares one engine and records its events."""

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from models.checkpoint import read_checkpoint
from service.repository.loaded_model import LoadedModel
from service.repository.repository import Repository
from service.repository.watcher import Watcher
from tests.service.parts import NAME


class ObservedRepository(Repository):
    """A repository that reads real checkpoints, all with one engine.

    ``events`` are its loads and retirements.
    """

    def __init__(self, folder: Path, loaded: LoadedModel, default: str | None = None) -> None:
        self.events: list[str] = []
        self.wait: threading.Event | None = None
        self.begun = threading.Event()

        def load(version: Path) -> LoadedModel:
            self.begun.set()
            if self.wait is not None:
                assert self.wait.wait(20)
            checkpoint = read_checkpoint(version)
            return replace(loaded, checkpoint=checkpoint)

        super().__init__(
            folder,
            load,
            lambda model: self.events.append(f"serve {model.version}"),
            lambda model: self.events.append(f"retire {model.version}"),
            default,
        )

    async def load_all(self) -> bool:
        return await Watcher(self, 0).load_all()

    async def watch(self, interval: float) -> None:
        await Watcher(self, interval).watch()


def add(folder: Path, version: int, name: str = NAME) -> None:
    shutil.copytree(folder / NAME / "1", folder / name / str(version))


def damage(folder: Path, version: int, name: str = NAME) -> None:
    (folder / name / str(version) / "model.safetensors").write_bytes(b"junk")


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario in its own event loop. It may take at most a minute."""

    async def within_a_minute() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(within_a_minute())
