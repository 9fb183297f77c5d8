import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.architectures import find_architecture
from models.checkpoint import CheckpointError, Config, read_checkpoint, read_config, write_checkpoint, write_config
from models.importing.public_checkpoint import public_input
from models.model_repository import find_version, models, publish, versions

ARCHITECTURE = find_architecture("cifar10_rnn_gate_38")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = Config(
        architecture=ARCHITECTURE.name, labels=list("abcdefghij"), input=public_input(ARCHITECTURE), code="test"
    )
    write_checkpoint(tmp_path / "model" / "3", ARCHITECTURE.build(), config)
    return tmp_path / "model" / "3"


def test_a_written_checkpoint_is_read_back(folder: Path) -> None:
    first, second = read_checkpoint(folder), read_checkpoint(folder)
    assert (first.name, first.version, first.config.labels[2]) == ("model", 3, "c")
    assert not first.network.training
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(first.network(images)[0], second.network(images)[0])


def test_files_have_the_default_permissions(folder: Path) -> None:
    reference = folder / "reference"
    reference.touch()
    assert {file.stat().st_mode for file in folder.iterdir()} == {reference.stat().st_mode}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be read as safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "should hold model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: edit(folder, architecture="cifar10_rnn_gate_74"), "does not hold the weights"),
        (lambda folder: edit(folder, architecture="resnet"), "unknown architecture 'resnet'"),
        (lambda folder: edit(folder, labels=["one"]), "check `architecture` and `labels`"),
        (lambda folder: edit(folder, surprise=1), "surprise"),
        (lambda folder: edit(folder, labels=[]), "at least 1 item"),
        (
            lambda folder: edit(folder, input=public_input(ARCHITECTURE).model_dump() | {"std": [0, 1, 1]}),
            "greater than 0",
        ),
        (lambda folder: poison(folder), "NaN or infinity"),
    ],
)
def test_a_damaged_checkpoint_says_what_to_do(folder: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def poison(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["head.bias"][0] = float("nan")
    save_file(state, folder / "model.safetensors")


def test_batch_counts_in_the_weights_are_ignored(folder: Path) -> None:
    expected = read_checkpoint(folder).network.state_dict()
    counts = {key: torch.tensor(7) for key in expected if key.endswith("num_batches_tracked")}
    assert counts
    save_file(load_file(folder / "model.safetensors") | counts, folder / "model.safetensors")
    found = read_checkpoint(folder).network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_config_with_a_byte_order_mark_is_read(folder: Path) -> None:
    config = read_config(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text(), encoding="utf-8-sig")
    assert read_config(folder) == config


def test_a_full_disk_is_an_error_and_keeps_the_earlier_file(folder: Path) -> None:
    """A limit on the size of files imitates a full disk."""
    config, before = read_config(folder), (folder / "model.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match=r"model\.safetensors"):
            write_checkpoint(folder, ARCHITECTURE.build(), config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_pickle_in_the_folder_names_the_way_to_convert_it(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.pth.tar")
    with pytest.raises(CheckpointError, match=r"model\.pth\.tar, a pickle.*skipnet import"):
        read_checkpoint(folder)


def test_publishing_makes_the_next_version(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    first = publish(folder, repository, "cats")
    second = publish(folder, repository, "cats")
    assert (first.name, second.name) == ("1", "2")
    assert versions(repository, "cats") == [1, 2]
    assert sorted(file.name for file in second.iterdir()) == ["config.json", "model.safetensors"]
    assert read_checkpoint(second).version == 2


def test_a_model_is_not_replaced_by_one_with_other_labels(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    publish(folder, repository, "cats")
    other = shutil.copytree(folder, tmp_path / "other")
    config = read_config(other)
    write_config(other, config.model_copy(update={"labels": [f"pet {label}" for label in config.labels]}))
    with pytest.raises(CheckpointError, match="cats/1 has other labels, which clients of cats rely on: choose another"):
        publish(other, repository, "cats")
    assert publish(other, repository, "pets").name == "1"
    # No client uses a model that cannot be read.
    (repository / "cats" / "1" / "config.json").unlink()
    assert publish(other, repository, "cats").name == "2"


@pytest.mark.parametrize("name", ["../secrets", "a/b", "", ".hidden", "x" * 101])
def test_names_cannot_leave_the_repository(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a valid model name"):
        versions(tmp_path, name)


def test_the_error_for_a_missing_version_lists_the_others(folder: Path) -> None:
    repository = folder.parents[1]
    for number in ("10", "9"):
        shutil.copytree(folder, folder.with_name(number))
    with pytest.raises(CheckpointError, match="holds no model version 4; name one of its versions: 3, 9, 10"):
        find_version(repository, None, 4)
    with pytest.raises(CheckpointError, match="holds no other version 4, but model; see --model-repository"):
        find_version(repository, "other", 4)


def test_the_error_for_a_model_folder_lists_its_versions(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("10"))
    with pytest.raises(CheckpointError, match="model is not a checkpoint: name one of its versions: 3, 10"):
        read_checkpoint(folder.parent)
    with pytest.raises(CheckpointError, match="is not a checkpoint: it should hold"):
        read_checkpoint(folder.parents[1])


def test_models_are_sorted_with_numbers_by_value(folder: Path) -> None:
    repository = folder.parents[1]
    names = ["cifar10", "cifar10_38", "cifar10_110", "cifar100_38", "photos"]
    for name in reversed(names):
        shutil.copytree(folder, repository / name / "1")
    shutil.rmtree(folder.parent)
    assert models(repository) == names


def test_a_network_that_skips_is_the_default_before_a_plain_one(folder: Path) -> None:
    repository = folder.parents[1]
    plain = find_architecture("cifar10_resnet_38")
    config = Config(architecture=plain.name, labels=list("abcdefghij"), input=public_input(plain), code="test")
    write_checkpoint(repository / "first" / "1", plain.build(), config)
    assert find_version(repository, None, None) == folder
    (folder / "config.json").unlink()
    assert find_version(repository, None, None) == folder
    folder.rename(repository / "away")
    assert find_version(repository, None, None) == repository / "first" / "1"
