"""The options of `skipnet train`, and the commands on model cards."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from models import SHIPPED
from models.checkpoint import read_config
from models.model_card.training_commands import count_shared_stages, list_commands
from models.persistence.training_record import TrainedStage
from models.training.recipes import OperatingPoint, Recipe, find_changes, find_recipe, read_changes
from models.training.setup.job import override
from models.training.setup.options import STAGES, JobOptions
from models.training.soup import SOUP
from models.training.types import stage_summary
from service.cli.main import main
from service.cli.training.train import Train
from tests.service.parts import picture

FOLDERS = sorted(weights.parent for weights in SHIPPED.glob("*/*/model.safetensors"))


def as_json(recipe: Recipe) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(json.dumps(stage_summary(recipe)))
    return summary


def trained(stages: Sequence[TrainedStage]) -> list[TrainedStage]:
    """Return the trained stages. Stages that the members of a soup share are listed once."""
    found = [stage for stage in stages if stage.stage != SOUP]
    for stage in stages:
        found += [each for other in stage.members for each in other[count_shared_stages(stages, other) :]]
    return found


@pytest.mark.parametrize("shipped", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_the_commands_on_a_card_train_with_the_values_of_its_stages(shipped: Path) -> None:
    config = read_config(shipped)
    stages = trained(config.training.stages)
    lines = [shlex.split(line) for line in list_commands(config) if line.startswith("skipnet train ")]
    assert len(lines) == len(stages) > 0
    for line, stage in zip(lines, stages, strict=True):
        options = Train(_cli_parse_args=line[2:])
        [stage_name] = STAGES[options.stages or ""]
        recipe = as_json(override(find_recipe(options.recipe, stage_name), options))
        # Early checkpoints have another key for the target rate. The teacher is not a part of the recipe.
        others = ("architecture", "seed", "target", "teacher")
        values = stage.model_dump(mode="json")
        assert recipe | {key: value for key, value in values.items() if key not in others} == recipe
        assert options.seed == (config.training.seed if stage.seed is None else stage.seed)
        assert stage.architecture in (None, options.arch)


def test_the_changes_of_a_stage_reproduce_its_recipe() -> None:
    changes = {
        "gate_bias_init": 0.0,
        "target_annealing": (0.0, 0.05),
        "operating_points": (OperatingPoint(1, 0.5, 0.6),),
        "per_sample_spread": None,
    }
    changed = override(find_recipe("distilled", "sp"), JobOptions(arch="", dataset="", changes=changes))
    found = find_changes(TrainedStage(**as_json(changed), seed=1))
    assert found.keys() == changes.keys()
    assert read_changes(json.dumps(found)) == changes


def test_equal_and_unknown_values_are_no_changes() -> None:
    summary = as_json(find_recipe("multi_budget", "sp"))
    assert find_changes(TrainedStage(**summary)) == {}
    assert find_changes(TrainedStage(**summary | {"epochs": 3, "batch": 64, "target": 0.6})) == {}
    del summary["statistics"], summary["operating_points"]
    assert find_changes(TrainedStage(**summary)) == {}
    assert find_changes(TrainedStage(name="mine", stage="sp", rate=3.0)) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gate_bias_init=0", "a recipe's changes are a JSON object such as"),
        ("[1]", "a recipe's changes are a JSON object such as"),
        ('{"bias": 0}', "unknown recipe value 'bias'; expected one of rate, "),
        ('{"epochs": 3}', "unknown recipe value 'epochs'"),
        ('{"gate_bias_init": "wide"}', "recipe value gate_bias_init: Input should be a valid number"),
        ('{"operating_points": [{"share": 1}]}', "recipe value operating_points: "),
        ('{"operating_points": [{"share": 2, "threshold": 0.5, "target": 0.5}]}', "should be less than or equal to 1"),
        ('{"samples": 0}', "recipe value samples: Input should be greater than or equal to 1"),
        ('{"temperature": 0}', "recipe value temperature: Input should be greater than 0"),
    ],
)
def test_a_wrong_change_is_refused_before_data_is_read(
    capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--arch", "cifar10_rnn_gate_38", "--dataset", "cifar10", "--data", "nowhere", "--changes", text])
    assert left.value.code == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_other_labels_than_those_of_the_model_are_refused_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number, kind in enumerate(2 * ("train", "val")):
        (tmp_path / kind / f"pet{number // 2}").mkdir(parents=True)
        for image in range(8):
            picture(image).save(tmp_path / kind / f"pet{number // 2}" / f"{image}.png")
    options = ["--arch", "cifar10_rnn_gate_38", "--dataset", "imagefolder", "--data", str(tmp_path), "--held-out", "2"]
    options += [
        "--recipe",
        "short",
        "--batch",
        "2",
        "--output",
        str(tmp_path / "run"),
        "--model-repository",
        str(SHIPPED),
    ]
    with pytest.raises(SystemExit) as left:
        main(["train", *options])
    assert left.value.code == 1
    assert re.search(r"cifar10_rnn_gate_38/\d+ has other labels", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_hrl_alone_needs_a_trained_network(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--arch", "cifar10_rnn_gate_38", "--dataset", "cifar10", "--data", "nowhere", "--stages", "hrl"])
    assert left.value.code == 1
    assert "hrl alone starts from a trained network: name its checkpoint with --init, or" in capsys.readouterr().err


def test_the_help_and_the_error_list_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert "plain, sp, hrl or sp,hrl; default: sp,hrl, or hrl if --init has gates already" in output
    with pytest.raises(SystemExit) as left:
        main(["train", "--arch", "cifar10_rnn_gate_38", "--dataset", "cifar10", "--stages", "hrl,sp"])
    assert left.value.code == 2
    assert "--stages (SKIPNET_STAGES): 'hrl,sp' does not fit: plain, sp, hrl or sp,hrl" in capsys.readouterr().err
