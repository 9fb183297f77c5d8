"""Models are loaded at startup, and new versions as they appear in the folder."""

import asyncio
import errno
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.errors import Code, ServiceError
from service.repository import watcher
from service.repository.folder import Beside, Files, Wanted, wanted_files
from service.repository.loaded_model import LoadedModel
from service.repository.repository import State
from service.repository.watcher import Watcher
from tests.service.observed_repository import ObservedRepository, add, run
from tests.service.parts import NAME


def test_serves_the_newest_version_of_every_model(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)
    add(folder, 10)
    add(folder, 3, "another")
    (folder / "notes").mkdir()
    (folder / "README").write_text("no model")

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load_all()
        assert observed.resolve(NAME, None).version == 10
        assert observed.resolve("another", 3).version == 3
        assert observed.resolve(None, None).name == "another"
        assert [(entry.name, entry.version, entry.state) for entry in await observed.index()] == [
            ("another", 3, State.READY),
            (NAME, 1, State.UNAVAILABLE),
            (NAME, 2, State.UNAVAILABLE),
            (NAME, 10, State.READY),
        ]

    run(scenario)


def test_models_that_wait_at_startup_are_reported_as_loading(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 1, "another")
    add(folder, 2, "another")

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        observed.wait = threading.Event()
        loading = asyncio.create_task(observed.load_all())
        await asyncio.to_thread(observed.begun.wait, 20)
        for name in (None, "another", NAME):
            with pytest.raises(ServiceError) as caught:
                observed.resolve(name, None)
            assert caught.value.code == Code.NOT_READY
        states = {(entry.name, entry.version): entry.state for entry in await observed.index()}
        assert states == {
            ("another", 1): State.UNAVAILABLE,
            ("another", 2): State.LOADING,
            (NAME, 1): State.LOADING,
        }
        observed.wait.set()
        await loading
        assert observed.events == ["serve 2", "serve 1"]

    run(scenario)


def test_a_model_loaded_by_request_during_startup_stays(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 1, "another")

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        observed.wait = threading.Event()
        starting = asyncio.create_task(observed.load_all())
        await asyncio.to_thread(observed.begun.wait, 20)
        add(folder, 2)
        loading = asyncio.create_task(observed.load(NAME))
        await asyncio.sleep(0)  # It now waits for the loading thread, before the next model.
        observed.wait.set()
        await asyncio.gather(starting, loading)
        assert list(observed.loaded[NAME]) == [2]
        assert observed.events == ["serve 1", "serve 2"]

    run(scenario)


def test_watching_retries_a_folder_that_cannot_be_read(
    folder: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = [0]

    def wanted_after_an_error(folder: Path, beside: Beside) -> dict[Wanted, Files]:
        looks[0] += 1
        if looks[0] <= 3:  # The error is logged once.
            raise OSError(errno.ESTALE, "Stale file handle")
        return wanted_files(folder, beside)

    monkeypatch.setattr(watcher, "wanted_files", wanted_after_an_error)

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        watching = asyncio.create_task(observed.watch(0.001))
        await asyncio.to_thread(observed.begun.wait, 20)
        watching.cancel()

    run(scenario)
    assert caplog.text.count(f"{folder} cannot be read: [Errno {errno.ESTALE}] Stale file handle") == 1


def test_folders_with_names_that_are_not_accepted_are_ignored_and_logged_once_with_the_reason(
    folder: Path, loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    add(folder, 1, "my model")
    for version in ("v14", "013", ".9.partial"):
        shutil.copytree(folder / NAME / "1", folder / NAME / version)
    shutil.copytree(folder / NAME / "1", folder / "flat")
    (folder / "lost+found").mkdir()
    (folder / "README.md").write_text("no model")

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        watcher = Watcher(observed, 0.001)
        await watcher.load_all()
        assert [(entry.name, entry.version) for entry in await observed.index()] == [(NAME, 1)]
        # Watching finds such folders too.
        add(folder, 1, "new model")
        watching = asyncio.create_task(watcher.watch())
        while "new model" not in caplog.text:
            await asyncio.sleep(0.001)
        add(folder, 2)
        while 2 not in observed.loaded[NAME]:
            await asyncio.sleep(0.001)
        watching.cancel()

    run(scenario)
    lines = [record.getMessage() for record in caplog.records if "is ignored" in record.getMessage()]
    expected = {
        "my model": "a model's name has letters",
        "new model": "a model's name has letters",
        f"{NAME}/v14": "a version is a whole number",
        f"{NAME}/013": "a version is a whole number without leading zeros",
        "flat/config.json": "belong in a folder of its version",
        "flat/model.safetensors": "belong in a folder of its version",
    }
    assert len(lines) == len(expected)
    for path, reason in expected.items():
        [line] = [line for line in lines if line.startswith(f"{folder / path} is ignored: ")]
        assert reason in line


def test_a_missing_default_model_is_logged_with_the_existing_models(
    folder: Path, loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        await ObservedRepository(folder, loaded, default="unknown").load_all()

    run(scenario)
    assert f"the default model unknown is not in {folder}, but {NAME}" in caplog.text


def test_empty_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        observed = ObservedRepository(tmp_path / "missing", SimpleNamespace())  # type: ignore[arg-type]
        await observed.load_all()
        assert await observed.index() == []

    run(scenario)
