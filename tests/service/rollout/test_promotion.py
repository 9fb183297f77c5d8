"""Promotion and rollback of versions, by a management call and on the command line, over a real socket."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import httpx
import pytest

from service.cli.main import main
from service.repository.loading import LoadError
from service.repository.promotion import PROMOTIONS, promote, roll_back, write_history
from tests.service.parts import NAME, Running, encoded, picture, post, until

IMAGE = encoded(picture(0))


def publish(folder: Path, *versions: int) -> None:
    for version in versions:
        partial = folder / NAME / f".{version}.partial"
        copytree(folder / NAME / "1", partial)
        partial.rename(folder / NAME / str(version))


def answering(server: Running) -> int:
    return int(post(server, IMAGE).json()["model"]["version"])


def manage(server: Running, verb: str, **parameters: int) -> httpx.Response:
    return server.client.post(f"/v2/repository/models/{NAME}/{verb}", json={"parameters": parameters})


def folder_of(server: Running) -> Path:
    return server.container.settings.model_repository


def test_a_published_version_waits_for_its_promotion(shelf: Callable[..., Running]) -> None:
    server = shelf(watch_interval=0.01)
    assert manage(server, "promote", version=1).json() == {"name": NAME, "version": "1", "before": "1"}
    publish(folder_of(server), 2)
    copytree(folder_of(server) / NAME / "1", folder_of(server) / "another" / "1")
    # It was published later, so the watcher has seen version 2 too.
    until(lambda: "another" in server.container.repository.loaded)
    assert server.client.post(f"/v2/repository/models/{NAME}/load").status_code == 200
    assert answering(server) == 1
    assert manage(server, "load", version=2).status_code == 200
    assert answering(server) == 1
    assert post(server, IMAGE, "?version=2").json()["model"]["version"] == 2

    assert manage(server, "promote").json() == {"name": NAME, "version": "2", "before": "1"}
    assert answering(server) == 2
    assert post(server, IMAGE, "?version=1").status_code == 404
    listed = {each["version"]: each for each in server.client.get("/models").json()["models"] if each["name"] == NAME}
    assert listed[2]["promoted"] and listed[2]["default"]
    assert "promoted" not in listed[1]


def test_a_rollback_goes_back_one_promotion_each_and_outlasts_a_restart(shelf: Callable[..., Running]) -> None:
    server = shelf()
    publish(folder_of(server), 2, 3, 4)
    for version in (2, 4):
        manage(server, "promote", version=version)
    assert answering(server) == 4
    assert manage(server, "rollback").json() == {"name": NAME, "version": "2", "before": "4"}
    assert answering(server) == 2
    # There is no earlier promotion, so the version before in the folder follows.
    assert manage(server, "rollback").json()["version"] == "1"
    assert manage(server, "rollback").json() == {
        "error": "there is no version before 1 to roll back to; /models lists the versions"
    }
    assert answering(server) == 1
    restarted = Running(server.container.settings, server.container.repository._load).wait_ready()
    assert answering(restarted) == 1
    restarted.stop()


def test_nothing_changes_if_the_version_or_the_promotions_fail(shelf: Callable[..., Running]) -> None:
    server = shelf()
    publish(folder_of(server), 2, 3)
    manage(server, "promote", version=1)
    (folder_of(server) / NAME / "2" / "model.safetensors").write_bytes(b"junk")
    for version, reason in ((2, "safetensors"), (7, "there is no version 7, but 1, 2, 3")):
        refused = manage(server, "promote", version=version)
        assert (refused.status_code, reason in refused.json()["error"]) == (400, True)
    file = folder_of(server) / NAME / PROMOTIONS
    file.unlink()
    file.with_name(f"{PROMOTIONS}.partial").mkdir()  # The file cannot be written.
    assert "cannot be written" in manage(server, "promote", version=3).json()["error"]
    assert answering(server) == 1
    assert list(server.container.repository.loaded[NAME]) == [1]
    assert "vershun: unknown parameter; expected one of version" in manage(server, "promote", vershun=3).json()["error"]


def test_the_commands_change_a_folder_that_a_service_watches(
    shelf: Callable[..., Running], capsys: pytest.CaptureFixture[str]
) -> None:
    server = shelf(watch_interval=0.01)
    folder = folder_of(server)
    publish(folder, 2)
    until(lambda: answering(server) == 2)
    main(["rollback", NAME, "--model-repository", str(folder)])
    assert f"{NAME}/1 is promoted in place of 2; services that watch {folder}" in capsys.readouterr().out
    until(lambda: answering(server) == 1)
    # Version 2 was served before, and its files are the same.
    (folder / NAME / PROMOTIONS).unlink()
    until(lambda: answering(server) == 2)
    publish(folder, 3)
    main(["promote", NAME, "2", "--model-repository", str(folder)])
    until(lambda: server.container.repository.promoted == {NAME: 2})
    with pytest.raises(SystemExit):
        main(["promote", NAME, "9", "--model-repository", str(folder)])
    assert "there is no version 9, but 1, 2, 3" in capsys.readouterr().err


def test_the_commands_call_a_running_service(shelf: Callable[..., Running], capsys: pytest.CaptureFixture[str]) -> None:
    server = shelf(management_keys=["boss"])
    publish(folder_of(server), 2)
    options = ["--server", server.url, "--management-key", "boss"]
    main(["promote", NAME, *options])
    assert answering(server) == 2
    main(["rollback", NAME, *options])
    assert answering(server) == 1
    assert capsys.readouterr().out.splitlines()[1] == f"{NAME}/1 is promoted in place of 2; {server.url} serves it"
    for wrong, message in ((options[:2], "no key was sent"), (["--server", f"{server.url}/x"], "Not Found")):
        with pytest.raises(SystemExit):
            main(["rollback", NAME, *wrong])
        assert message in capsys.readouterr().err


def test_promotions_that_cannot_be_read_are_an_error(shelf: Callable[..., Running]) -> None:
    server = shelf()
    publish(folder_of(server), 2)
    (folder_of(server) / NAME / PROMOTIONS).write_text("7")
    # The newest version may be the one that was rolled back.
    assert "promoted.json cannot be read" in manage(server, "load").json()["error"]
    assert answering(server) == 1


def test_the_history_has_each_version_once_and_drops_those_that_no_longer_exist() -> None:
    assert promote([1, 2], [1, 2, 3], 1) == [2, 1]
    assert promote([], [1, 2, 3]) == [3]
    assert roll_back([1, 2, 3], [1, 3]) == [1]
    # A canary is not the usual version, so the rollback is from the newest of the others.
    assert roll_back([], [1, 2, 3], beside=[3]) == [1]
    with pytest.raises(LoadError):
        roll_back([], [])


def test_only_the_last_promotions_are_kept(tmp_path: Path) -> None:
    write_history(tmp_path, range(100))
    assert (tmp_path / PROMOTIONS).read_text().count(",") == 19
