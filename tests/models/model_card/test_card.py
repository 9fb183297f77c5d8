import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from models import SHIPPED
from models.analysis.schema import ANALYSIS, read_analysis
from models.checkpoint import read_checkpoint
from models.errors import UserError
from models.model_card.card import BEGIN, CARD, END, draw_figures, split_card, write_card
from models.model_card.training_commands import list_commands
from models.model_repository import find_version
from models.persistence.training_record import TrainingRecord

FOLDERS = sorted(weights.parent for weights in SHIPPED.glob("*/*/model.safetensors"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint, to write on."""
    return Path(shutil.copytree(FOLDERS[0], tmp_path / FOLDERS[0].parent.name / "7"))


@pytest.mark.parametrize("shipped", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_shipped_card_matches_its_config(shipped: Path) -> None:
    _, figures, _ = split_card(shipped / CARD)
    assert figures == draw_figures(read_checkpoint(shipped), read_analysis(shipped))


def test_commands_give_options_that_are_not_the_default() -> None:
    _, photos, _ = split_card(SHIPPED / "imagenette_rnn_gate_18" / "1" / CARD)
    commands = [line for line in photos.splitlines() if line.startswith("skipnet train")]
    assert len(commands) == 4
    for command, arch in zip(commands, ("imagenet_resnet_18", *("imagenet_rnn_gate_18",) * 3), strict=True):
        for part in (f"--arch {arch} --dataset imagefolder", "--batch 64", "--data DATA", "--size 112"):
            assert part in command


@pytest.mark.parametrize("shipped", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_commands_start_from_earlier_ones_and_overwrite_none(shipped: Path) -> None:
    ended: list[str] = []
    for command in list_commands(read_checkpoint(shipped).config):
        options = dict(re.findall(r"--(\S+) (\S+)", command))
        if "stages" in options:
            assert "init" not in options or options["init"] in ended
            ended.append(f"{options.get('output', 'runs/' + options['arch'])}/{options['stages']}")
    assert len(set(ended)) == len(ended) > 0


@pytest.mark.parametrize(
    ("stage", "teacher"),
    [
        (
            {"name": "multi_budget", "distillation_weight": 0.7, "teacher": "small-logits"},
            " --teacher runs/cifar10_teacher_small/teacher_logits.safetensors",
        ),
        (
            {"name": "distilled", "distillation_weight": 0.9, "teacher": "checkpoint"},
            " --teacher runs/cifar10_resnet_38/plain",
        ),
        (
            {"name": "distilled", "distillation_weight": 0.9},
            " --teacher runs/cifar10_teacher_small/teacher_logits.safetensors",
        ),
        (
            {"name": "distilled", "distillation_weight": 0.9, "teacher": "large"},
            " --teacher runs/cifar10_teacher_large/teacher.safetensors",
        ),
        (
            {"name": "distilled", "distillation_weight": 0.9, "teacher": "large-logits"},
            " --teacher runs/cifar10_teacher_large/teacher_logits.safetensors",
        ),
        ({"name": "budget"}, ""),
    ],
)
def test_commands_name_the_teacher_of_a_stage(stage: dict[str, Any], teacher: str) -> None:
    plain = {"name": "short", "stage": "plain", "epochs": 2, "batch": 128}
    stages = [plain, plain | stage | {"stage": "sp"}, plain | stage | {"stage": "hrl"}]
    config = read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None)).config
    training = {"dataset": "cifar10", "validation_images": 1000, "seed": 0, "stages": stages}
    commands = list_commands(config.model_copy(update={"training": TrainingRecord.model_validate(training)}))
    assert ("skipnet teach cifar10 --held-out 1000" in commands) == ("cifar10_teacher_small/" in teacher)
    assert ("skipnet teach cifar10 --network large --held-out 1000" in commands) == (
        "cifar10_teacher_large/" in teacher
    )
    assert f" --init runs/cifar10_rnn_gate_38/sp{teacher}" in commands[-1] or teacher == ""
    assert ("--teacher" in commands[-1]) == bool(teacher)


def test_commands_train_the_architecture_of_each_stage() -> None:
    sp = {"name": "short", "stage": "sp", "epochs": 2, "batch": 128}
    routed = read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None)).config
    stages = [{"architecture": "cifar10_rnn_gate_38"} | sp, sp | {"stage": "plain"}]
    training = {"dataset": "cifar10", "validation_images": 1000, "seed": 0, "stages": stages}
    changes = {"architecture": "cifar10_resnet_38", "training": TrainingRecord.model_validate(training)}
    dense = routed.model_copy(update=changes)
    first, second = list_commands(dense)
    assert "--arch cifar10_rnn_gate_38 " in first
    assert "--arch cifar10_resnet_38 " in second and second.endswith("--init runs/cifar10_rnn_gate_38/sp")


def test_text_outside_the_marks_is_kept(folder: Path) -> None:
    card = folder / CARD
    before, figures, after = split_card(card)
    card.write_text(f"{before}Mine.\n\n{BEGIN}\nold\n{END}{after}\nMine too.\n")
    assert write_card(folder) == card
    # The commands name the folder, which is another version here.
    assert card.read_text() == f"{before}Mine.\n\n{figures.replace(f'/{FOLDERS[0].name}', '/7')}{after}\nMine too.\n"


def test_checkpoint_without_a_card_gets_the_template(folder: Path) -> None:
    (folder / CARD).unlink()
    text = write_card(folder).read_text()
    assert text.startswith(f"# {folder.parent.name}, version 7\n") and "## Limits" in text
    accuracy = read_checkpoint(folder).config.evaluation.accuracy  # type: ignore[union-attr]
    assert f"| top-1 accuracy | {accuracy:.2%} |" in text


def test_card_without_marks_is_not_changed(folder: Path) -> None:
    (folder / CARD).write_text("# All mine\n")
    with pytest.raises(UserError, match="has no marks for the figures: add these two lines"):
        write_card(folder)
    assert (folder / CARD).read_text() == "# All mine\n"


def test_damaged_analysis_is_an_error(folder: Path) -> None:
    (folder / ANALYSIS).write_text('{"model": "half')
    with pytest.raises(UserError, match="run `skipnet analyze"):
        read_analysis(folder)
