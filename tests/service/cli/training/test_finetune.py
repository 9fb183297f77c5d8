"""`skipnet train --recipe finetune` on a few images: a run, its publication, and the commands after it."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.architectures import find_architecture
from models.checkpoint import Config, read_checkpoint, read_config, write_checkpoint, write_config
from models.model_card.training_commands import list_commands
from service.cli.main import main
from service.settings import Settings
from tests.service.parts import PNG, SPEC, Running, encoded, picture

DENSE = "cifar10_resnet_38"


def write_photos(folder: Path) -> None:
    """Write 20 dark and 10 light images."""
    for brightness, label, count in ((0, "dark", 20), (255, "light", 10)):
        (folder / label).mkdir(parents=True)
        for seed in range(count):
            image = Image.blend(picture(seed), Image.new("RGB", (48, 40), (brightness,) * 3), 0.8)
            image.save(folder / label / f"{seed}.png")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense network of ten classes with random weights."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    labels = [str(label) for label in range(10)]
    spec = SPEC.model_copy(update={"interpolation": "bilinear"})
    write_checkpoint(
        folder, find_architecture(DENSE).build(), Config(architecture=DENSE, labels=labels, input=spec, code="test")
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def short_timing() -> Iterator[None]:
    """The tests do not compare times, so they measure them briefly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.finetuning.comparison.TIMED_SECONDS", 0.1)
        yield


def arguments(pretrained: Path, *options: str) -> list[str]:
    """Return the command line of a run in the current folder."""
    return [
        "train", "--init", str(pretrained), "--dataset", "imagefolder", "--data", "my photos",
        "--recipe", "finetune", "--epochs", "1", "--compile", "off", "--precision", "float32",
        "--output", "run", "--model-repository", "repository", *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was published with --publish-anyway: images, run and repository."""
    folder = tmp_path_factory.mktemp("finetune")
    write_photos(folder / "my photos")
    with chdir(folder):
        main(arguments(pretrained, "--publish-anyway"))
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run and its repository, which is the current folder, with the images where they were."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "repository"):
        shutil.copytree(finished / name, tmp_path / name)
    (tmp_path / "my photos").symlink_to(finished / "my photos")
    return tmp_path


def test_a_run_publishes_a_network_with_threshold_figures_and_split(finished: Path) -> None:
    published = finished / "repository" / "my_photos" / "1"
    config = read_config(published)
    assert config.architecture == "cifar10_rnn_gate_38" and config.labels == ["dark", "light"]
    assert config.input == SPEC.model_copy(update={"interpolation": "bilinear"})
    training = config.training
    assert (training.train_images, training.validation_images) == (24, 6)
    assert training.validation_files is not None and len(training.validation_files) == 6
    assert [(stage.stage, stage.freeze_backbone) for stage in training.stages] == [
        ("plain", None), ("sp", True), ("sp", None),
    ]  # fmt: skip
    assert [stage.teacher for stage in training.stages] == [None, "checkpoint", "checkpoint"]
    assert config.evaluation is not None and config.evaluation.split == "validation"
    assert config.evaluation.images == 6 and config.evaluation.fixed_routes
    assert config.execute_threshold in [point.threshold for point in config.calibration]
    card = (published / "README.md").read_text()
    assert card.startswith("# my_photos, version 1") and "--recipe finetune" in card and "--temper" not in card


def test_the_gates_are_trained_before_all_weights(finished: Path, pretrained: Path) -> None:
    start, dense, gates, routed = (
        read_checkpoint(folder).network.state_dict()
        for folder in (pretrained, *(finished / "run" / part for part in ("dense/plain", "gates/sp", "routed/sp")))
    )
    assert dense["head.weight"].shape[0] == 2 and start["head.weight"].shape[0] == 10
    assert not torch.equal(dense["stem.0.weight"], start["stem.0.weight"])
    backbone = [key for key in dense if "num_batches" not in key]
    assert all(torch.equal(gates[key], dense[key]) for key in backbone)
    assert not torch.equal(routed["blocks.3.residual.0.weight"], gates["blocks.3.residual.0.weight"])


def test_the_service_serves_the_published_network(finished: Path) -> None:
    server = Running(Settings(model_repository=finished / "repository", engine="torch")).wait_ready()
    try:
        response = server.client.post("/classify?model=my_photos", content=encoded(picture(0)), headers=PNG)
    finally:
        server.stop()
    assert response.status_code == 200 and response.json()["predictions"][0]["label"] in ("dark", "light")


def test_evaluate_finds_the_images_of_the_training(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = copy / "repository" / "my_photos" / "1"
    before = read_config(published)
    write_config(published, before.model_copy(update={"calibration": [], "evaluation": None}))
    main(["evaluate", str(published), "--calibrate", "--write", "--engine", "torch"])
    assert "has no test images: the figures are of the 6 validation images" in capsys.readouterr().out
    after = read_config(published)
    assert after.evaluation is not None and after.evaluation.images == 6 and after.calibration
    main(["evaluate", str(copy / "run" / "result"), "--engine", "torch"])
    assert "as in config.json" in capsys.readouterr().out


@pytest.mark.usefixtures("copy")
def test_resume_of_a_finished_run_says_that_there_is_nothing_to_train(
    pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(pretrained, "--publish-anyway", "--resume"))
    output = capsys.readouterr().out
    assert "nothing to train" in output and "published before: repository/my_photos/1" in output
    assert re.search(r"dense  accuracy .*% \(95 % confidence: .* M MACs, .* ms an image", output)
    assert "Routing paid" in output or "Routing did not pay" in output
    with pytest.raises(SystemExit):
        main(arguments(pretrained, "--resume", "--seed", "5"))
    assert "belongs to a run with seed=0" in capsys.readouterr().err


def test_a_network_that_loses_too_much_is_not_published(
    pretrained: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, favoured in (("dense/plain", 0), ("routed/sp", 1)):
        checkpoint = read_checkpoint(copy / "run" / folder)
        with torch.no_grad():
            checkpoint.network.head.weight.zero_()
            checkpoint.network.head.bias.copy_(torch.eye(2)[favoured])
        write_checkpoint(checkpoint.folder, checkpoint.network, checkpoint.config)
    with pytest.raises(SystemExit) as left:
        main(arguments(pretrained, "--resume"))
    assert left.value.code == 1
    # Two thirds of the validation images are dark.
    output = capsys.readouterr().err
    assert "the network was not published:\n" in output and "  it loses 33.3 points of accuracy to its dense" in output
    assert "--resume --publish-anyway" in output and not (copy / "repository" / "my_photos" / "2").exists()
    main(arguments(pretrained, "--resume", "--max-loss", "34", "--publish-anyway"))
    assert (copy / "repository" / "my_photos" / "2" / "README.md").is_file()


def test_a_signal_between_trainings_prints_the_command_that_resumes(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "my photos")
    given = arguments(pretrained)
    monkeypatch.setattr(sys, "argv", ["skipnet", *given])
    from models.finetuning import folder_check

    check_images = folder_check.check_images

    def interrupted(*values: object) -> list[str]:
        os.kill(os.getpid(), signal.SIGTERM)
        return check_images(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_check, "check_images", interrupted)
    with pytest.raises(SystemExit) as left:
        main(given)
    assert left.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in (output := capsys.readouterr().err) and output.endswith("--resume\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "sp"], "recipe finetune sets its stages and its teacher: leave out --stages and --teacher"),
        (["--arch", "cifar10_resnet_38"], "cifar10_resnet_38 has no gates: name a network with gates with --arch"),
        (["--arch", "imagenet_rnn_gate_18"], "is a cifar10_resnet_38, not a imagenet_resnet_18"),
        (
            ["--mean", "0.5,0.5"],
            "three numbers separated by commas are expected, not '0.5,0.5'",
        ),
        (["--init", "absent"], "absent"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str],
    message: str,
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "my photos")
    with pytest.raises(SystemExit):
        main(arguments(pretrained, *options))
    assert message in capsys.readouterr().err


def test_the_command_on_a_card_is_that_of_the_run(finished: Path) -> None:
    config = read_config(finished / "run" / "result")
    assert list_commands(config) == [
        "skipnet train --init CHECKPOINT --dataset imagefolder --data DATA --recipe finetune --output runs/finetune "
        "--seed 0 --batch 8 --epochs 1"
    ]


def test_training_without_arch_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--dataset", "cifar10"])
    assert "--arch is missing: name the architecture to train" in capsys.readouterr().err
