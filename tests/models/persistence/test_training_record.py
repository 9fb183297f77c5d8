"""The training record of every shipped config is read and written unchanged."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models import SHIPPED
from models.checkpoint import CONFIG, WEIGHTS, read_config, write_config
from models.persistence.legacy_names import current_names
from models.persistence.training_record import PointRecord, TrainedStage, TrainingRecord
from models.training.recipes import RECIPES, OperatingPoint, Recipe, Stage
from models.training.types import stage_record, stage_summary

FOLDERS = sorted(file.parent for file in SHIPPED.glob(f"*/*/{WEIGHTS}"))


def expected(values: Any) -> Any:
    """Return a shipped record under the current names, the members of a soup included."""
    if isinstance(values, list):
        return [expected(value) for value in values]
    if isinstance(values, dict):
        return {"members" if key == "of" else key: expected(value) for key, value in values.items()}
    return values


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_a_shipped_record_is_written_as_it_was_read(folder: Path, tmp_path: Path) -> None:
    shipped = json.loads((folder / CONFIG).read_text())["training"]
    config = read_config(folder)
    write_config(tmp_path, config)
    written = json.loads((tmp_path / CONFIG).read_text())["training"]
    # This compares text, because 1 and 1.0 are equal, and because the order of the values must stay.
    assert json.dumps(written) == json.dumps(expected(current_names(shipped)))
    assert config.training.model_extra == {}
    assert all(stage.model_extra == {} for stage in config.training.stages)


def test_stages_have_every_value_of_a_recipe() -> None:
    assert {field.name for field in fields(Recipe)} <= TrainedStage.model_fields.keys()
    assert [field.name for field in fields(OperatingPoint)] == list(PointRecord.model_fields)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("stage", ["plain", "sp", "hrl"])
def test_the_record_of_a_stage_is_its_recipe(name: str, stage: Stage) -> None:
    recipe = RECIPES[name](stage)
    assert json.dumps(stage_record(recipe).model_dump(mode="json")) == json.dumps(stage_summary(recipe))


def test_a_soup_is_read_under_its_old_names() -> None:
    plain = {"name": "taught", "stage": "plain", "distil": 0.9}
    old = {"held_out_images": 1000, "stages": [plain, {"stage": "average", "of": [[plain]]}]}
    record = TrainingRecord.model_validate(old)
    first, soup = record.stages
    assert (record.validation_images, first.name, first.distillation_weight) == (1000, "distilled", 0.9)
    assert soup.stage == "soup" and soup.members == ((first,),)
    assert TrainingRecord.model_validate(record.model_dump(mode="json")) == record


def test_only_set_values_are_written_and_unknown_ones_are_kept() -> None:
    assert TrainingRecord().model_dump() == {}
    record = TrainingRecord.model_validate({"dataset": "svhn", "seed": None, "note": "by hand"})
    assert record.model_dump() == {"dataset": "svhn", "note": "by hand"}
    assert record.model_copy(update={"temperature": 2.0}).model_dump() == {
        "dataset": "svhn", "temperature": 2.0, "note": "by hand",
    }  # fmt: skip


def test_a_value_of_another_type_is_an_error() -> None:
    with pytest.raises(ValidationError, match="validation_images"):
        TrainingRecord.model_validate({"validation_images": "many"})


def test_a_stage_keeps_the_architecture_that_it_names() -> None:
    assert TrainedStage(stage="sp").with_architecture("a").architecture == "a"
    assert TrainedStage(stage="sp", architecture="b").with_architecture("a").architecture == "b"
