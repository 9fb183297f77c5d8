"""Versions of models are loaded, replaced and unloaded."""

import asyncio
import errno
import shutil
import threading
from pathlib import Path

import pytest

from service.errors import Code, ServiceError
from service.repository import repository
from service.repository.folder import files_of
from service.repository.loaded_model import LoadedModel
from service.repository.loading import LoadError
from service.repository.repository import State
from tests.service.observed_repository import ObservedRepository, add, run
from tests.service.parts import NAME


def test_the_index_lists_loaded_models_if_the_folder_cannot_be_read(
    folder: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stale(*_: object) -> dict[str, list[int]]:
        raise OSError(errno.ESTALE, "Stale file handle")

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load_all()
        monkeypatch.setattr(repository, "scan", stale)
        assert [(entry.name, entry.version, entry.state) for entry in await observed.index()] == [
            (NAME, 1, State.READY)
        ]

    run(scenario)
    assert f"{folder} cannot be read: [Errno {errno.ESTALE}] Stale file handle" in caplog.text


def test_a_model_card_does_not_change_a_version(folder: Path) -> None:
    version = folder / NAME / "1"
    before = files_of(version)
    (version / "README.md").write_text("a card")
    (version / "analysis.json").write_text("{}")
    assert files_of(version) == before
    (version / "config.json").write_text("{}")
    assert files_of(version) != before


def test_a_switch_keeps_the_old_version_until_its_last_request_ends(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load(NAME, 1)
        observed.pinned.clear()
        with observed.lease(NAME, None) as old, observed.lease(NAME, None):
            await observed.load(NAME)
            assert observed.resolve(NAME, None).version == 2
            assert old.version == 1
            assert observed.events == ["serve 1", "serve 2"]
        assert observed.events == ["serve 1", "serve 2", "retire 1"]
        with pytest.raises(ServiceError):
            observed.resolve(NAME, 1)

    run(scenario)


def test_old_version_serves_while_the_new_one_loads(folder: Path, loaded: LoadedModel) -> None:
    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load(NAME)
        add(folder, 2)
        observed.wait = threading.Event()
        observed.begun.clear()
        loading = asyncio.create_task(observed.load(NAME))
        await asyncio.to_thread(observed.begun.wait, 20)
        assert observed.resolve(NAME, None).version == 1
        with pytest.raises(ServiceError) as caught:
            observed.resolve(NAME, 2)
        assert caught.value.code == Code.NOT_READY
        assert [entry.state for entry in await observed.index()] == [State.READY, State.LOADING]
        observed.wait.set()
        await loading
        assert observed.resolve(NAME, None).version == 2

    run(scenario)


def test_loading_after_the_newest_was_removed_goes_back_to_the_previous(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load_all()
        shutil.rmtree(folder / NAME / "2")
        await observed.load(NAME)
        assert list(observed.loaded[NAME]) == [1]
        assert observed.resolve(NAME, None).version == 1
        assert observed.events == ["serve 2", "serve 1", "retire 2"]

    run(scenario)


def test_a_version_loaded_by_number_is_served_beside_the_others(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)
    add(folder, 3)

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load(NAME, 1)
        await observed.load(NAME, 2)
        await observed.load(NAME)
        assert sorted(observed.loaded[NAME]) == [1, 2, 3]
        assert observed.resolve(NAME, None).version == 3
        await observed.unload(NAME, 3)
        assert observed.resolve(NAME, None).version == 2
        await observed.unload(NAME)
        assert observed.events[-3:] == ["retire 3", "retire 1", "retire 2"]

    run(scenario)


def test_the_newest_loaded_by_number_and_then_as_the_newest_replaces_the_older(
    folder: Path, loaded: LoadedModel
) -> None:
    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load_all()
        newest = max(observed.loaded[NAME])
        add(folder, newest + 1)
        await observed.load(NAME, newest + 1)
        assert sorted(observed.loaded[NAME]) == [newest, newest + 1]
        await observed.load(NAME)
        assert sorted(observed.loaded[NAME]) == [newest + 1]

    run(scenario)


def test_loading_a_served_version_again_replaces_it(folder: Path, loaded: LoadedModel) -> None:
    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        first = await observed.load(NAME)
        second = await observed.load(NAME)
        assert observed.resolve(NAME, None) is second
        assert first.retired
        assert not second.retired
        assert observed.events == ["serve 1", "serve 1", "retire 1"]

    run(scenario)


def test_unloading_a_model_that_is_not_loaded(folder: Path, loaded: LoadedModel) -> None:
    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load(NAME)
        for name, version in ((NAME, 2), ("unknown", None)):
            with pytest.raises(LoadError, match="not served"):
                await observed.unload(name, version)

    run(scenario)


@pytest.mark.parametrize("name", ["..", "../secret", "/etc", "a/b", "", ".hidden", "x" * 200, "a\0b", "é"])
def test_names_cannot_leave_the_folder(folder: Path, loaded: LoadedModel, name: str) -> None:
    shutil.copytree(folder / NAME, folder.parent / "secret")

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        with pytest.raises(LoadError):
            await observed.load(name)
        with pytest.raises(ServiceError) as caught:
            observed.resolve(name, None)
        assert caught.value.code == Code.MODEL_NOT_FOUND

    run(scenario)


def test_models_and_versions_that_do_not_exist(folder: Path, loaded: LoadedModel) -> None:
    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        for name, version in (("unknown", None), (NAME, 9)):
            with pytest.raises(LoadError, match="holds no"):
                await observed.load(name, version)
        await observed.load(NAME)
        cases: list[tuple[str | None, int | None]] = [("unknown", None), (NAME, 9), (None, 9)]
        for wanted, number in cases:
            with pytest.raises(ServiceError) as caught:
                observed.resolve(wanted, number)
            assert caught.value.code == Code.MODEL_NOT_FOUND

    run(scenario)


def test_nothing_loaded_is_not_ready_rather_than_not_found(folder: Path, loaded: LoadedModel) -> None:
    async def scenario() -> None:
        for observed in (ObservedRepository(folder, loaded), ObservedRepository(folder, loaded, default="later")):
            with pytest.raises(ServiceError) as caught:
                observed.resolve(None, None)
            assert caught.value.code == Code.NOT_READY

    run(scenario)
