import asyncio
import errno
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.errors import Code, ServiceError
from service.repository import repository, watcher
from service.repository.folder import Files, files_of, newest_files
from service.repository.loaded_model import LoadedModel
from service.repository.loading import LoadError
from service.repository.repository import State
from service.repository.watcher import Watcher
from tests.service.parts import NAME
from tests.service.shelf import Shelf, add, run


def test_serves_the_newest_version_of_every_model(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)
    add(folder, 10)
    add(folder, 3, "another")
    (folder / "notes").mkdir()
    (folder / "README").write_text("no model")

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load_all()
        assert shelf.resolve(NAME, None).version == 10
        assert shelf.resolve("another", 3).version == 3
        assert shelf.resolve(None, None).name == "another"
        assert [(entry.name, entry.version, entry.state) for entry in await shelf.index()] == [
            ("another", 3, State.READY),
            (NAME, 1, State.UNAVAILABLE),
            (NAME, 2, State.UNAVAILABLE),
            (NAME, 10, State.READY),
        ]

    run(story)


def test_what_waits_for_its_turn_at_the_start_is_being_loaded(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 1, "another")
    add(folder, 2, "another")

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        shelf.wait = threading.Event()
        loading = asyncio.create_task(shelf.load_all())
        await asyncio.to_thread(shelf.begun.wait, 20)
        for name in (None, "another", NAME):
            with pytest.raises(ServiceError) as caught:
                shelf.resolve(name, None)
            assert caught.value.code == Code.NOT_READY
        states = {(entry.name, entry.version): entry.state for entry in await shelf.index()}
        assert states == {
            ("another", 1): State.UNAVAILABLE,
            ("another", 2): State.LOADING,
            (NAME, 1): State.LOADING,
        }
        shelf.wait.set()
        await loading
        assert shelf.events == ["serve 2", "serve 1"]

    run(story)


def test_what_is_loaded_by_request_during_the_start_stays(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 1, "another")

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        shelf.wait = threading.Event()
        starting = asyncio.create_task(shelf.load_all())
        await asyncio.to_thread(shelf.begun.wait, 20)
        add(folder, 2)
        asked = asyncio.create_task(shelf.load(NAME))
        await asyncio.sleep(0)  # It stands in line, before the start's next model.
        shelf.wait.set()
        await asyncio.gather(starting, asked)
        assert list(shelf.loaded[NAME]) == [2]
        assert shelf.events == ["serve 1", "serve 2"]

    run(story)


def test_the_index_tells_what_is_served_where_the_folder_can_not_be_read(
    folder: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stale(*_: object) -> dict[str, list[int]]:
        raise OSError(errno.ESTALE, "Stale file handle")

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load_all()
        monkeypatch.setattr(repository, "scan", stale)
        assert [(entry.name, entry.version, entry.state) for entry in await shelf.index()] == [(NAME, 1, State.READY)]

    run(story)
    assert f"{folder} can't be read: [Errno {errno.ESTALE}] Stale file handle" in caplog.text


def test_a_card_written_beside_a_version_is_no_new_version(folder: Path) -> None:
    version = folder / NAME / "1"
    before = files_of(version)
    (version / "README.md").write_text("a card")
    (version / "analysis.json").write_text("{}")
    assert files_of(version) == before
    (version / "config.json").write_text("{}")
    assert files_of(version) != before


def test_a_folder_that_can_not_be_read_is_looked_at_again(
    folder: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = [0]

    def newest_after_an_error(folder: Path) -> dict[tuple[str, int], Files]:
        looks[0] += 1
        if looks[0] <= 3:  # It is told once.
            raise OSError(errno.ESTALE, "Stale file handle")
        return newest_files(folder)

    monkeypatch.setattr(watcher, "newest_files", newest_after_an_error)

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        watching = asyncio.create_task(shelf.watch(0.001))
        await asyncio.to_thread(shelf.begun.wait, 20)
        watching.cancel()

    run(story)
    assert caplog.text.count(f"{folder} can't be read: [Errno {errno.ESTALE}] Stale file handle") == 1


def test_folders_with_names_that_are_not_accepted_are_ignored_and_logged_once_with_the_reason(
    folder: Path, loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    add(folder, 1, "my model")
    for version in ("v14", "013", ".9.partial"):
        shutil.copytree(folder / NAME / "1", folder / NAME / version)
    shutil.copytree(folder / NAME / "1", folder / "flat")
    (folder / "lost+found").mkdir()
    (folder / "README.md").write_text("no model")

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        watcher = Watcher(shelf, 0.001)
        await watcher.load_all()
        assert [(entry.name, entry.version) for entry in await shelf.index()] == [(NAME, 1)]
        # It is found while the folder is watched, too.
        add(folder, 1, "new model")
        watching = asyncio.create_task(watcher.watch())
        while "new model" not in caplog.text:
            await asyncio.sleep(0.001)
        add(folder, 2)
        while 2 not in shelf.loaded[NAME]:
            await asyncio.sleep(0.001)
        watching.cancel()

    run(story)
    lines = [record.getMessage() for record in caplog.records if "is ignored" in record.getMessage()]
    expected = {
        "my model": "a model's name has letters",
        "new model": "a model's name has letters",
        f"{NAME}/v14": "a version is a whole number",
        f"{NAME}/013": "a version is a whole number without leading zeros",
        "flat/config.json": "belong into a folder of its version",
        "flat/model.safetensors": "belong into a folder of its version",
    }
    assert len(lines) == len(expected)
    for path, reason in expected.items():
        [line] = [line for line in lines if line.startswith(f"{folder / path} is ignored: ")]
        assert reason in line


def test_swap_keeps_the_old_version_until_its_last_request_is_done(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load(NAME, 1)
        shelf._pinned.clear()
        with shelf.lease(NAME, None) as old, shelf.lease(NAME, None):
            await shelf.load(NAME)
            assert shelf.resolve(NAME, None).version == 2
            assert old.version == 1
            assert shelf.events == ["serve 1", "serve 2"]
        assert shelf.events == ["serve 1", "serve 2", "retire 1"]
        with pytest.raises(ServiceError):
            shelf.resolve(NAME, 1)

    run(story)


def test_old_version_serves_while_the_new_one_loads(folder: Path, loaded: LoadedModel) -> None:
    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load(NAME)
        add(folder, 2)
        shelf.wait = threading.Event()
        shelf.begun.clear()
        loading = asyncio.create_task(shelf.load(NAME))
        await asyncio.to_thread(shelf.begun.wait, 20)
        assert shelf.resolve(NAME, None).version == 1
        with pytest.raises(ServiceError) as caught:
            shelf.resolve(NAME, 2)
        assert caught.value.code == Code.NOT_READY
        assert [entry.state for entry in await shelf.index()] == [State.READY, State.LOADING]
        shelf.wait.set()
        await loading
        assert shelf.resolve(NAME, None).version == 2

    run(story)


def test_loading_after_the_newest_was_moved_away_goes_back_to_the_one_before(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load_all()
        shutil.rmtree(folder / NAME / "2")
        await shelf.load(NAME)
        assert list(shelf.loaded[NAME]) == [1]
        assert shelf.resolve(NAME, None).version == 1
        assert shelf.events == ["serve 2", "serve 1", "retire 2"]

    run(story)


def test_version_asked_for_by_number_is_served_beside_the_others(folder: Path, loaded: LoadedModel) -> None:
    add(folder, 2)
    add(folder, 3)

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load(NAME, 1)
        await shelf.load(NAME, 2)
        await shelf.load(NAME)
        assert sorted(shelf.loaded[NAME]) == [1, 2, 3]
        assert shelf.resolve(NAME, None).version == 3
        await shelf.unload(NAME, 3)
        assert shelf.resolve(NAME, None).version == 2
        await shelf.unload(NAME)
        assert shelf.events[-3:] == ["retire 3", "retire 1", "retire 2"]

    run(story)


def test_the_newest_loaded_by_number_and_then_as_the_newest_takes_the_place_of_the_older(
    folder: Path, loaded: LoadedModel
) -> None:
    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load_all()
        newest = max(shelf.loaded[NAME])
        add(folder, newest + 1)
        await shelf.load(NAME, newest + 1)
        assert sorted(shelf.loaded[NAME]) == [newest, newest + 1]
        await shelf.load(NAME)
        assert sorted(shelf.loaded[NAME]) == [newest + 1]

    run(story)


def test_loading_a_served_version_again_replaces_it(folder: Path, loaded: LoadedModel) -> None:
    async def story() -> None:
        shelf = Shelf(folder, loaded)
        first = await shelf.load(NAME)
        second = await shelf.load(NAME)
        assert shelf.resolve(NAME, None) is second
        assert first.retired
        assert not second.retired
        assert shelf.events == ["serve 1", "serve 1", "retire 1"]

    run(story)


def test_unload_of_what_is_not_served(folder: Path, loaded: LoadedModel) -> None:
    async def story() -> None:
        shelf = Shelf(folder, loaded)
        await shelf.load(NAME)
        for name, version in ((NAME, 2), ("nobody", None)):
            with pytest.raises(LoadError, match="not served"):
                await shelf.unload(name, version)

    run(story)


@pytest.mark.parametrize("name", ["..", "../secret", "/etc", "a/b", "", ".hidden", "x" * 200, "a\0b", "é"])
def test_names_can_not_leave_the_folder(folder: Path, loaded: LoadedModel, name: str) -> None:
    shutil.copytree(folder / NAME, folder.parent / "secret")

    async def story() -> None:
        shelf = Shelf(folder, loaded)
        with pytest.raises(LoadError):
            await shelf.load(name)
        with pytest.raises(ServiceError) as caught:
            shelf.resolve(name, None)
        assert caught.value.code == Code.MODEL_NOT_FOUND

    run(story)


def test_what_does_not_exist(folder: Path, loaded: LoadedModel) -> None:
    async def story() -> None:
        shelf = Shelf(folder, loaded)
        for name, version in (("nobody", None), (NAME, 9)):
            with pytest.raises(LoadError, match="holds no"):
                await shelf.load(name, version)
        await shelf.load(NAME)
        cases: list[tuple[str | None, int | None]] = [("nobody", None), (NAME, 9), (None, 9)]
        for wanted, number in cases:
            with pytest.raises(ServiceError) as caught:
                shelf.resolve(wanted, number)
            assert caught.value.code == Code.MODEL_NOT_FOUND

    run(story)


def test_nothing_loaded_is_not_ready_rather_than_not_found(folder: Path, loaded: LoadedModel) -> None:
    async def story() -> None:
        for shelf in (Shelf(folder, loaded), Shelf(folder, loaded, default="later")):
            with pytest.raises(ServiceError) as caught:
                shelf.resolve(None, None)
            assert caught.value.code == Code.NOT_READY

    run(story)


def test_a_default_model_that_is_not_there_is_logged_with_those_that_are(
    folder: Path, loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        await Shelf(folder, loaded, default="nobody").load_all()

    run(story)
    assert f"the default model nobody is not in {folder}, but {NAME}" in caplog.text


def test_empty_folder(tmp_path: Path) -> None:
    async def story() -> None:
        shelf = Shelf(tmp_path / "missing", SimpleNamespace())  # type: ignore[arg-type]
        await shelf.load_all()
        assert await shelf.index() == []

    run(story)
