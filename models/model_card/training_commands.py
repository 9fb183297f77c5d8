"""The commands that train a checkpoint once more, by what its config tells of its stages."""

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from models.architectures import find_architecture
from models.checkpoint import Config
from models.importing.public_checkpoint import IMPORTED
from models.training.distillation.teacher import KINDS, wide_teacher
from models.training.recipes import find_changes
from models.training.soup import AVERAGE

Stages = Sequence[dict[str, Any]]


def draw_commands(config: Config) -> list[str]:
    """Return the commands that train the stages, each from the one before; the first teaches, or a wide network."""
    commands, _ = draw_chain(config, config.training.get("stages", []), [], "")
    training = config.training
    networks = [network for network in KINDS if any(f"{training['dataset']}_{network}/" in each for each in commands)]
    taught = [draw_teaching(training["dataset"], network, training["held_out_images"]) for network in networks]
    return [*taught, *commands]


def draw_teaching(dataset: str, network: str, held_out: int) -> str:
    """Return the command that trains a wide network to teach."""
    which = "" if network == "wide" else f" --network {network}"
    return f"skipnet teach {dataset}{which} --held-out {held_out}"


def draw_chain(config: Config, stages: Stages, folders: Sequence[str], mark: str) -> tuple[list[str], list[str]]:
    """Return the commands of the stages after those that left ``folders``, and the folders of all.

    ``mark`` tells their runs from another chain's.
    """
    commands: list[str] = []
    left = list(folders)
    for stage in stages[len(folders) :]:
        if stage["stage"] == AVERAGE:
            more, folder = draw_average(config, stages, stage["of"], left)
            commands += more
        elif stage["stage"] == IMPORTED:
            arch = stage.get("architecture", config.architecture)
            folder = f"runs/{arch}_{IMPORTED}"
            commands.append(f"skipnet import {stage['name']} --arch {arch} --output {folder}")
        else:
            command, folder = draw_train(config, stage, left, mark)
            commands.append(command)
        left.append(folder)
    return commands, left


def draw_average(
    config: Config, stages: Stages, others: Sequence[Stages], folders: Sequence[str]
) -> tuple[list[str], str]:
    """Return the commands of the chains that are averaged with the one that left ``folders``, and the mean's folder."""
    commands, ends = [], [folders[-1]]
    for number, other in enumerate(others, 2):
        more, left = draw_chain(config, other, folders[: shared(stages, other)], f"_{number}")
        commands += more
        ends.append(left[-1])
    target = f"runs/{config.architecture}_{AVERAGE}"
    return [*commands, f"skipnet average {target} {' '.join(ends)}"], target


def shared(stages: Stages, other: Stages) -> int:
    """Return with how many of the same stages two chains begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(stages, other, strict=False)))


def draw_train(config: Config, stage: dict[str, Any], folders: Sequence[str], mark: str) -> tuple[str, str]:
    """Return the command of a stage that starts from the last of ``folders``, and the folder that it leaves."""
    architecture, training = config.architecture, config.training
    name, plain = stage["stage"], re.sub("_(rnn_gate|feedforward)(_rl)?_", "_resnet_", architecture)
    trained = stage.get("architecture", plain if name == "plain" else architecture)
    parts = [f"skipnet train --arch {trained} --dataset {training['dataset']}"]
    parts.append(f"--recipe {stage['name']} --stages {name} --seed {stage.get('seed', training['seed'])}")
    parts.append(f"--held-out {training['held_out_images']}")
    if not stage.get("iterations"):
        parts.append(f"--epochs {stage['epochs']}")
    parts.append(f"--batch {stage['batch']}")
    changes = find_changes(stage)
    if changes:
        parts.append(f"--changes '{json.dumps(changes)}'")
    if training["dataset"] == "imagefolder":
        parts.append("--data DATA")
    if find_architecture(architecture).image_size != config.input.height:
        parts.append(f"--size {config.input.height}")
    if folders:
        parts.append(f"--init {folders[-1]}")
    teacher = teacher_of(stage) or ""
    if wide := wide_teacher(teacher):
        network, file = wide
        parts.append(f"--teacher runs/{training['dataset']}_{network}/{file}")
    elif teacher == "checkpoint" and len(folders) > 1:
        parts.append(f"--teacher {folders[0]}")
    run = f"runs/{trained}{mark}"
    while f"{run}/{name}" in folders:
        run += f"_{stage['name']}"
    if run != f"runs/{trained}":
        parts.append(f"--output {run}")
    return " ".join(parts), f"{run}/{name}"


def teacher_of(stage: dict[str, Any]) -> str | None:
    """Return what a stage learned from, if something did: a wide network (`wide_teacher`) or a checkpoint."""
    if not stage.get("distil"):
        return None
    # Older configs do not tell, or not which; theirs of this name learned from the one there was.
    teacher: str = stage.get("teacher", "answers" if stage["name"] == "taught" else "checkpoint")
    return "wide-answers" if teacher == "answers" else teacher
