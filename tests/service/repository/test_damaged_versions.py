"""Versions that cannot be loaded: the versions served instead, and the reports."""

import asyncio
import errno
import shutil
from pathlib import Path

import pytest

from service.errors import Code, ServiceError
from service.repository.loaded_model import LoadedModel
from service.repository.loading import LoadError
from service.repository.repository import State
from tests.service.observed_repository import ObservedRepository, add, damage, run
from tests.service.parts import NAME


def test_a_damaged_model_does_not_keep_others_from_loading(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 1, "another")
    damage(folder, 1, "another")

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        assert await observed.load_all()
        assert observed.resolve(NAME, None).version == 1
        assert "safetensors" in next(entry.reason for entry in await observed.index() if entry.name == "another")
        # No other model replaces the default: it may have other labels.
        with pytest.raises(ServiceError, match="the default model another is not loaded") as caught:
            observed.resolve(None, None)
        assert caught.value.code == Code.NOT_READY

    run(scenario)


def test_the_previous_version_is_served_if_the_newest_is_damaged(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)
    add(folder, 3)
    damage(folder, 3)

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load_all()
        assert observed.resolve(NAME, None).version == 2
        assert observed.events == ["serve 2"]
        assert "safetensors" in (await observed.index())[2].reason
        # It was not loaded by number, so the repaired version replaces it.
        shutil.rmtree(folder / NAME / "3")
        add(folder, 3)
        await observed.load(NAME)
        assert observed.events == ["serve 2", "serve 3", "retire 2"]

    run(scenario)


def test_a_model_whose_only_version_is_0_counts_as_failed_too(folder: Path, loaded: LoadedModel) -> None:
    (folder / NAME / "1").rename(folder / NAME / "0")
    damage(folder, 0)

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        assert not await observed.load_all()
        assert observed.failed == 1

    run(scenario)


@pytest.mark.parametrize("hidden", ["is_file", "is_dir"])
def test_an_unreadable_version_fails_its_own_model_only(
    folder: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    add(folder, 2, "another")
    look = getattr(Path, hidden)

    def forbid(path: Path) -> bool:
        if folder / "another" in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return bool(look(path))

    monkeypatch.setattr(Path, hidden, forbid)

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded, default=NAME)
        assert await observed.load_all()
        assert observed.resolve(None, None).version == 1
        if hidden == "is_file":
            assert observed.failed == 1
            [reason] = [entry.reason for entry in await observed.index() if entry.name == "another"]
            assert "Permission denied" in reason

    run(scenario)


def test_a_version_whose_files_become_damaged_counts_as_failed(folder: Path, loaded: LoadedModel) -> None:
    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load_all()
        damage(folder, 1)
        with pytest.raises(LoadError):
            await observed.load(NAME)
        assert (observed.resolve(NAME, None).version, observed.failed) == (1, 1)

    run(scenario)


def test_damaged_version_is_refused_and_the_old_one_stays(folder: Path, loaded: LoadedModel) -> None:
    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load(NAME)
        add(folder, 2)
        damage(folder, 2)
        with pytest.raises(LoadError, match="safetensors"):
            await observed.load(NAME)
        assert observed.resolve(NAME, None).version == 1
        assert observed.events == ["serve 1"]
        entry = (await observed.index())[1]
        assert (entry.version, entry.state) == (2, State.UNAVAILABLE)
        assert "safetensors" in entry.reason

    run(scenario)


def test_a_newest_version_that_cannot_be_loaded_is_counted_until_it_is_replaced_or_removed(
    folder: Path, loaded: LoadedModel
) -> None:
    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load(NAME)
        assert observed.failed == 0
        for change in ("a newer one", "taken away"):
            newest = max(observed.loaded[NAME]) + 1
            add(folder, newest)
            damage(folder, newest)
            with pytest.raises(LoadError):
                await observed.load(NAME)
            assert observed.failed == 1
            if change == "a newer one":
                add(folder, newest + 1)
            else:
                shutil.rmtree(folder / NAME / str(newest))
            await observed.load(NAME)
            assert observed.failed == 0

    run(scenario)


def test_watching_removes_the_problem_of_a_removed_version(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)
    damage(folder, 2)

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load_all()
        assert observed.failed == 1
        shutil.rmtree(folder / NAME / "2")
        watching = asyncio.create_task(observed.watch(0.001))
        async with asyncio.timeout(20):
            while observed.failed:
                await asyncio.sleep(0.001)
        watching.cancel()
        assert observed.resolve(NAME, None).version == 1

    run(scenario)


def test_a_model_without_a_loadable_version_is_not_ready_rather_than_not_found(
    folder: Path, loaded: LoadedModel
) -> None:
    add(folder, 1, "zebra")
    damage(folder, 1, "zebra")

    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded)
        await observed.load_all()
        for version in (None, 1):
            with pytest.raises(ServiceError, match="zebra could not be loaded; GET /models says why") as caught:
                observed.resolve("zebra", version)
            assert caught.value.code == Code.NOT_READY
        with pytest.raises(ServiceError) as caught:
            observed.resolve("zebra", 2)
        assert caught.value.code == Code.MODEL_NOT_FOUND

    run(scenario)


def test_an_unloaded_model_is_not_found_rather_than_not_ready(folder: Path, loaded: LoadedModel) -> None:
    async def scenario() -> None:
        observed = ObservedRepository(folder, loaded, default="another")
        await observed.load(NAME)
        add(folder, 2)
        damage(folder, 2)
        with pytest.raises(LoadError):
            await observed.load(NAME)
        await observed.unload(NAME)
        assert observed.failed == 0
        with pytest.raises(ServiceError) as caught:
            observed.resolve(NAME, None)
        assert caught.value.code == Code.MODEL_NOT_FOUND

    run(scenario)
