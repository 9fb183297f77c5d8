"""Versions that can't be loaded: what is served in their place, and how they are told."""

import asyncio
import errno
import shutil
from pathlib import Path

import pytest

from service.errors import Code, ServiceError
from service.repository.loaded_model import LoadedModel
from service.repository.loading import LoadError
from service.repository.repository import State
from tests.service.parts import NAME
from tests.service.shelf import Shelf, add, damage, run


def test_one_bad_model_does_not_keep_the_others_out(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 1, "another")
    damage(folder, 1, "another")

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        assert await shelf.load_all()
        assert shelf.resolve(NAME, None).version == 1
        assert "safetensors" in next(entry.reason for entry in await shelf.index() if entry.name == "another")
        # Nor does another take the default's place: it has other labels, perhaps.
        with pytest.raises(ServiceError, match="the default model another is not loaded") as caught:
            shelf.resolve(None, None)
        assert caught.value.code == Code.NOT_READY

    run(story)


def test_where_the_newest_version_is_damaged_the_one_before_is_served(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)
    add(folder, 3)
    damage(folder, 3)

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load_all()
        assert shelf.resolve(NAME, None).version == 2
        assert shelf.events == ["serve 2"]
        assert "safetensors" in (await shelf.index())[2].reason
        # It was not asked for by number: the mended one replaces it.
        shutil.rmtree(folder / NAME / "3")
        add(folder, 3)
        await shelf.load(NAME)
        assert shelf.events == ["serve 2", "serve 3", "retire 2"]

    run(story)


def test_a_model_whose_only_version_is_0_counts_as_failed_too(folder: Path, loaded: LoadedModel) -> None:
    (folder / NAME / "1").rename(folder / NAME / "0")
    damage(folder, 0)

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        assert not await shelf.load_all()
        assert shelf.failed == 1

    run(story)


@pytest.mark.parametrize("hidden", ["is_file", "is_dir"])
def test_what_may_not_be_looked_at_is_the_trouble_of_its_own_model(
    folder: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    add(folder, 2, "another")
    look = getattr(Path, hidden)

    def forbid(path: Path) -> bool:
        if folder / "another" in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return bool(look(path))

    monkeypatch.setattr(Path, hidden, forbid)

    async def story() -> None:
        shelf = Shelf(folder, loaded, default=NAME)
        assert await shelf.load_all()
        assert shelf.resolve(None, None).version == 1
        if hidden == "is_file":
            assert shelf.failed == 1
            [reason] = [entry.reason for entry in await shelf.index() if entry.name == "another"]
            assert "Permission denied" in reason

    run(story)


def test_a_served_version_whose_files_were_replaced_by_worse_ones_counts_as_failed(
    folder: Path, loaded: LoadedModel
) -> None:
    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load_all()
        damage(folder, 1)
        with pytest.raises(LoadError):
            await shelf.load(NAME)
        assert (shelf.resolve(NAME, None).version, shelf.failed) == (1, 1)

    run(story)


def test_damaged_version_is_refused_and_the_old_one_stays(folder: Path, loaded: LoadedModel) -> None:
    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load(NAME)
        add(folder, 2)
        damage(folder, 2)
        with pytest.raises(LoadError, match="safetensors"):
            await shelf.load(NAME)
        assert shelf.resolve(NAME, None).version == 1
        assert shelf.events == ["serve 1"]
        entry = (await shelf.index())[1]
        assert (entry.version, entry.state) == (2, State.UNAVAILABLE)
        assert "safetensors" in entry.reason

    run(story)


def test_a_newest_version_that_can_not_be_loaded_is_counted_until_another_is_served_or_it_is_gone(
    folder: Path, loaded: LoadedModel
) -> None:
    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load(NAME)
        assert shelf.failed == 0
        for mend in ("a newer one", "taken away"):
            newest = max(shelf.loaded[NAME]) + 1
            add(folder, newest)
            damage(folder, newest)
            with pytest.raises(LoadError):
                await shelf.load(NAME)
            assert shelf.failed == 1
            if mend == "a newer one":
                add(folder, newest + 1)
            else:
                shutil.rmtree(folder / NAME / str(newest))
            await shelf.load(NAME)
            assert shelf.failed == 0

    run(story)


def test_watching_forgets_what_was_wrong_with_a_version_that_is_gone(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)
    damage(folder, 2)

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load_all()
        assert shelf.failed == 1
        shutil.rmtree(folder / NAME / "2")
        watching = asyncio.create_task(shelf.watch(0.001))
        async with asyncio.timeout(20):
            while shelf.failed:
                await asyncio.sleep(0.001)
        watching.cancel()
        assert shelf.resolve(NAME, None).version == 1

    run(story)


def test_a_model_of_which_nothing_can_be_loaded_is_not_ready_rather_than_not_found(
    folder: Path, loaded: LoadedModel
) -> None:
    add(folder, 1, "zebra")
    damage(folder, 1, "zebra")

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load_all()
        for version in (None, 1):
            with pytest.raises(ServiceError, match="zebra could not be loaded; GET /models says why") as caught:
                shelf.resolve("zebra", version)
            assert caught.value.code == Code.NOT_READY
        with pytest.raises(ServiceError) as caught:
            shelf.resolve("zebra", 2)
        assert caught.value.code == Code.MODEL_NOT_FOUND

    run(story)


def test_a_model_that_was_unloaded_is_not_served_rather_than_not_ready(folder: Path, loaded: LoadedModel) -> None:
    async def story() -> None:
        shelf = Shelf(folder, loaded, default="another")
        await shelf.load(NAME)
        add(folder, 2)
        damage(folder, 2)
        with pytest.raises(LoadError):
            await shelf.load(NAME)
        await shelf.unload(NAME)
        assert shelf.failed == 0
        with pytest.raises(ServiceError) as caught:
            shelf.resolve(NAME, None)
        assert caught.value.code == Code.MODEL_NOT_FOUND

    run(story)
