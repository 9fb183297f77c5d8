"""The commands that reproduce the training of a checkpoint, from the stages in its config."""

import json
import re
from collections.abc import Sequence
from itertools import takewhile

from models.architectures import find_architecture
from models.checkpoint import Config
from models.importing.public_checkpoint import IMPORTED
from models.persistence.training_record import TrainedStage, TrainingRecord
from models.training.distillation.location import parse_teacher
from models.training.distillation.network import TEACHERS
from models.training.recipes import FINETUNE, find_changes
from models.training.soup import SOUP

Stages = Sequence[TrainedStage]
RESULT = "result"
"""The folder of the checkpoint in the folder of a fine-tuning."""


def list_commands(config: Config) -> list[str]:
    """Return the commands that train the teachers and then the stages."""
    training = config.training
    commands, _ = list_chain(config, training.stages, [], "")
    networks = [
        network for network in TEACHERS if any(f"{training.dataset}_teacher_{network}/" in each for each in commands)
    ]
    teachers = [teacher_command(training, network) for network in networks]
    return [*teachers, *commands]


def teacher_command(training: TrainingRecord, network: str) -> str:
    """Return the command that trains a distillation teacher."""
    which = "" if network == "small" else f" --network {network}"
    return f"skipnet teach {training.dataset}{which} --held-out {training.validation_images}"


def list_chain(config: Config, stages: Stages, folders: Sequence[str], mark: str) -> tuple[list[str], list[str]]:
    """Return the commands of a chain of stages and the folders that its stages write.

    The stages that wrote ``folders`` are already done. ``mark`` distinguishes the runs of several chains.
    """
    commands: list[str] = []
    written = list(folders)
    for stage in stages[len(folders) :]:
        if stage.stage == SOUP:
            more, folder = list_soup(config, stages, stage.members, written)
            commands += more
        elif stage.stage == IMPORTED:
            arch = stage.architecture or config.architecture
            folder = f"runs/{arch}_{IMPORTED}"
            commands.append(f"skipnet import {stage.name} --arch {arch} --output {folder}")
        elif stage.name == FINETUNE:
            folder = f"runs/{FINETUNE}/{RESULT}"
            if folder not in written:
                commands.append(finetune_command([each for each in stages if each.name == FINETUNE], written))
        else:
            command, folder = train_command(config, stage, written, mark)
            commands.append(command)
        written.append(folder)
    return commands, written


def finetune_command(stages: Stages, folders: Sequence[str]) -> str:
    """Return the command of a fine-tuning, which runs its ``stages`` from the last of ``folders``."""
    last, epochs = stages[-1], {stage.epochs for stage in stages}
    parts = [f"skipnet train --init {folders[-1] if folders else 'CHECKPOINT'} --dataset imagefolder --data DATA"]
    parts.append(f"--recipe {FINETUNE} --output runs/{FINETUNE} --seed {last.seed} --batch {last.batch}")
    if len(epochs) == 1:
        parts.append(f"--epochs {last.epochs}")
    if changes := find_changes(last):
        parts.append(f"--changes '{json.dumps(changes)}'")
    return " ".join(parts)


def list_soup(
    config: Config, stages: Stages, others: Sequence[Stages], folders: Sequence[str]
) -> tuple[list[str], str]:
    """Return the commands of a model soup's other chains, and the folder of the soup."""
    commands, ends = [], [folders[-1]]
    for number, other in enumerate(others, 2):
        more, written = list_chain(config, other, folders[: count_shared_stages(stages, other)], f"_{number}")
        commands += more
        ends.append(written[-1])
    target = f"runs/{config.architecture}_{SOUP}"
    return [*commands, f"skipnet average {target} {' '.join(ends)}"], target


def count_shared_stages(stages: Stages, other: Stages) -> int:
    """Return the number of equal stages with which two chains begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(stages, other, strict=False)))


def train_command(config: Config, stage: TrainedStage, folders: Sequence[str], mark: str) -> tuple[str, str]:
    """Return the command of a stage that starts from the last of ``folders``, and the folder that it writes."""
    architecture, training = config.architecture, config.training
    name, plain = stage.stage, re.sub("_(rnn_gate|feedforward)(_rl)?_", "_resnet_", architecture)
    trained = stage.architecture or (plain if name == "plain" else architecture)
    parts = [f"skipnet train --arch {trained} --dataset {training.dataset}"]
    parts.append(f"--recipe {stage.name} --stages {name} --seed {training.seed if stage.seed is None else stage.seed}")
    parts.append(f"--held-out {training.validation_images}")
    if not stage.iterations:
        parts.append(f"--epochs {stage.epochs}")
    parts.append(f"--batch {stage.batch}")
    changes = find_changes(stage)
    if changes:
        parts.append(f"--changes '{json.dumps(changes)}'")
    if training.dataset == "imagefolder":
        parts.append("--data DATA")
    if find_architecture(architecture).image_size != config.input.height:
        parts.append(f"--size {config.input.height}")
    if folders:
        parts.append(f"--init {folders[-1]}")
    teacher = find_teacher(stage) or ""
    if parsed := parse_teacher(teacher):
        network, file = parsed
        parts.append(f"--teacher runs/{training.dataset}_teacher_{network}/{file}")
    elif teacher == "checkpoint" and len(folders) > 1:
        parts.append(f"--teacher {folders[0]}")
    run = f"runs/{trained}{mark}"
    while f"{run}/{name}" in folders:
        run += f"_{stage.name}"
    if run != f"runs/{trained}":
        parts.append(f"--output {run}")
    return " ".join(parts), f"{run}/{name}"


def find_teacher(stage: TrainedStage) -> str | None:
    """Return the teacher of a stage, if it had one: see `parse_teacher`, or "checkpoint"."""
    if not stage.distillation_weight:
        return None
    # Early configs do not name the teacher. Those of this recipe used the logits of the only teacher.
    return stage.teacher or ("small-logits" if stage.name == "distilled" else "checkpoint")
